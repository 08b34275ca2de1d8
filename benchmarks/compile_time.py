"""What compiling a training step of 12 layers costs in JAX, beside the same model with Flax's own attention.

    python benchmarks/compile_time.py [--parts model masks] [--lengths 512 2048] [--kernels auto blockwise]
        [--layers 12] [--repeat 3] [--json FILE]

model: `nnx.value_and_grad` of 12 layers (norm, attention with dropout 0.1 and a causal mask with padding, norm, MLP), 4
sequences of width 256 with 4 heads. masks: forward and backward of one attention, whose mask is an array that was
made outside of the function, cast or changed within, or given as an argument. Seconds are the CPU's, of tracing and of
lowering to XLA and compiling, each in a process of its own that has compiled something small, one after the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import measure

BATCH, WIDTH, HEADS, RATE = 4, 256, 4, 0.1
PARTS = ("trace", "lower", "compile")


def attention_of(kernel: str, rngs: Any) -> Any:
    """One attention layer: Flax's, or ours with a kernel."""
    from flax import nnx

    import maskattn_jax

    if kernel == "flax":
        return nnx.MultiHeadAttention(HEADS, WIDTH, dropout_rate=RATE, decode=False, rngs=rngs)
    return maskattn_jax.MultiHeadAttention(WIDTH, HEADS, dropout_rate=RATE, rngs=rngs)


def model_of(kernel: str, layers: int) -> Any:
    """Layers of attention and MLP, called with (x, lengths)."""
    import jax.numpy as jnp
    from flax import nnx

    from maskattn import masks

    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
            self.attention = attention_of(kernel, rngs)
            self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x: Any, mask: Any) -> Any:
            given: dict[str, Any] = {"deterministic": False}
            given |= {} if kernel == "flax" else {"kernel": kernel}
            x = x + self.attention(self.norms[0](x), mask=mask, **given)
            return x + self.down(nnx.gelu(self.up(self.norms[1](x))))

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([Layer(rngs) for _ in range(layers)])

        def __call__(self, x: Any, lengths: Any) -> Any:
            if kernel == "flax":
                at = jnp.arange(x.shape[1])
                mask = (at[:, None] >= at) & (at < lengths[:, None, None, None])
            else:
                mask = masks.Causal() & masks.KeyPadding(lengths)
            for layer in self.layers:
                x = layer(x, mask)
            return x

    return Model(nnx.Rngs(0))


def step_of(kernel: str, length: int, layers: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A training step without its optimizer, and its arguments."""
    import jax.numpy as jnp
    from flax import nnx

    graph, state = nnx.split(model_of(kernel, layers))

    def step(state: Any, x: Any, lengths: Any) -> Any:
        model = nnx.merge(graph, state)
        return nnx.value_and_grad(lambda model: jnp.mean(model(x, lengths) ** 2))(model)

    return step, (state, jnp.zeros((BATCH, length, WIDTH)), jnp.full(BATCH, length, jnp.int32))


#: How a mask that is an array reaches attention: (made outside of the function, changed within).
FORMS: dict[str, Callable[[Any], Any]] = {
    "argument": lambda keep: keep,
    "bool": lambda keep: keep,
    "float32, cast": lambda keep: keep.astype(bool),
    "inverted": lambda keep: ~keep,
    "sliced": lambda keep: keep[:, :, 1:, 1:],
}


def masked_of(form: str, kernel: str, length: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Forward and backward of attention with a causal mask that is an array, and the arguments."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import maskattn_jax

    size = length + 1 if form == "sliced" else length
    keep = jnp.tril(jnp.ones((1, 1, size, size), bool))
    keep = keep.astype(jnp.float32) if form == "float32, cast" else ~keep if form == "inverted" else keep

    def loss(q: Any, k: Any, v: Any, *given: Any) -> Any:
        mask = FORMS[form](*given or (keep,))
        if kernel == "flax":
            return nnx.dot_product_attention(q, k, v, mask=mask).sum()
        return maskattn_jax.attention(q, k, v, mask, kernel=kernel).sum()

    qkv = [jnp.zeros((2, length, 4, 64)) for _ in range(3)]
    return jax.value_and_grad(loss, (0, 1, 2)), (*qkv, *((keep,) if form == "argument" else ()))


def cost(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, float]:
    """CPU seconds of each part, in this process."""
    import jax

    jax.jit(lambda x: x @ x)(jax.numpy.zeros((8, 8))).block_until_ready()
    marks = [time.process_time()]
    traced = jax.jit(function).trace(*arguments)
    marks.append(time.process_time())
    lowered = traced.lower()
    marks.append(time.process_time())
    lowered.compile()
    marks.append(time.process_time())
    return {name: marks[n + 1] - marks[n] for n, name in enumerate(PARTS)}


def in_turn(cases: dict[str, tuple[str, ...]], repeat: int) -> dict[str, dict[str, float]]:
    """The median of what each case costs, each in a process of its own, all of them `repeat` times."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(repeat):
        for name, case in cases.items():
            command = [sys.executable, __file__, "--child", *case]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(result.stdout))
    medians = {}
    for name, costs in found.items():
        medians[name] = measure.medians({part: [one[part] for one in costs] for part in PARTS})
        medians[name]["total"] = sorted(sum(one.values()) for one in costs)[len(costs) // 2]
    return medians


def compared(title: str, cases: dict[str, tuple[str, ...]], repeat: int) -> dict[str, Any]:
    """What cases cost, and their totals as a share of the first one's."""
    found: dict[str, Any] = in_turn(cases, repeat)
    first = next(iter(found.values()))["total"]
    print(title)
    for name, one in found.items():
        one["ratio"] = one["total"] / first
        parts = "  ".join(f"{part} {one[part]:6.2f}" for part in (*PARTS, "total"))
        print(f"  {name:22} {parts}  ratio {one['ratio']:.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=("model", "masks"))
    parser.add_argument("--lengths", nargs="+", type=int, default=(512, 2048))
    parser.add_argument("--kernels", nargs="+", default=("auto", "blockwise", "reference"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        part, name, kernel, length = arguments.child
        built = step_of(kernel, int(length), int(name)) if part == "model" else masked_of(name, kernel, int(length))
        print(json.dumps(cost(*built)))
        return
    results: dict[str, Any] = {}
    for length in arguments.lengths:
        if "model" in arguments.parts:
            kernels = ("flax", *arguments.kernels)
            cases = {kernel: ("model", str(arguments.layers), kernel, str(length)) for kernel in kernels}
            results[f"model, L = {length}"] = compared(
                f"{arguments.layers} layers, L = {length}", cases, arguments.repeat
            )
        if "masks" in arguments.parts:
            for kernel in arguments.kernels:
                cases = {form: ("masks", form, kernel, str(length)) for form in FORMS}
                title = f"masks, {kernel}, L = {length}"
                results[title] = compared(title, cases, arguments.repeat)
    shape = {"batch": BATCH, "width": WIDTH, "heads": HEADS, "layers": arguments.layers, "dropout": RATE}
    packages = ("numpy", "jax", "jaxlib", "flax")
    measure.write(arguments.json, measure.report(results, packages, shape=shape, repeat=arguments.repeat))


if __name__ == "__main__":
    main()
