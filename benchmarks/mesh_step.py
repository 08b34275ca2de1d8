"""A training step on a mesh of 2 (batch) x 4 (heads) virtual devices of the CPU: what its attention costs and sends.

    python benchmarks/mesh_step.py [--length 1024] [--batch 8] [--layers 2] [--repeat 7] [--ways automatic flax]
        [--json FILE]

The step is `jax.value_and_grad` and SGD of layers of norm, attention (causal, with padding), norm and MLP: data
parallel over "data", tensor parallel over "model". The ways differ in the attention only:

automatic  `maskattn_jax.MultiHeadAttention`, automatic mesh axes: nothing is said of the mesh
explicit   the same, explicit mesh axes
shard_map  the same layer, its attention in a `jax.shard_map` over the heads and the batch, automatic axes
flax       `nnx.MultiHeadAttention` with its mask, automatic axes

Eight devices share the cores of one CPU, so that seconds say what is computed, not what a network would add: for that
there are the collectives of the compiled program, by kind, with their bytes for each device. Ways run in alternation.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

WIDTH, HEADS, KINDS = 256, 8, ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
WAYS = ("automatic", "explicit", "shard_map", "flax")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "f64": 8, "s64": 8}


def model_of(way: str, layers: int, mesh: Any) -> Any:
    """Layers of attention and MLP, called with (x, lengths)."""
    import functools

    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import PartitionSpec as P

    import maskattn_jax
    from maskattn import masks

    parts = P("data", None, "model")

    def in_shard_map(module: Any, x: Any, lengths: Any) -> Any:
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=(parts, parts, parts, P("data")), out_specs=parts)
        def attend(query: Any, key: Any, value: Any, lengths: Any) -> Any:
            return maskattn_jax.attention(query, key, value, masks.Causal() & masks.KeyPadding(lengths))

        return module.out(attend(module.query(x), module.key(x), module.value(x), lengths))

    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
            if way == "flax":
                self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
            else:
                self.attention = maskattn_jax.MultiHeadAttention(WIDTH, HEADS, rngs=rngs)
            self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

        def attend(self, x: Any, lengths: Any) -> Any:
            if way == "shard_map":
                return in_shard_map(self.attention, x, lengths)
            if way == "flax":
                at = jnp.arange(x.shape[1])
                return self.attention(x, mask=(at[:, None] >= at) & (at < lengths[:, None, None, None]))
            return self.attention(x, mask=masks.Causal() & masks.KeyPadding(lengths))

        def __call__(self, x: Any, lengths: Any) -> Any:
            x = x + self.attend(self.norms[0](x), lengths)
            options = {"out_sharding": P("data")} if way == "explicit" else {}
            return x + self.down(nnx.gelu(self.up(self.norms[1](x))), **options)

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([Layer(rngs) for _ in range(layers)])

        def __call__(self, x: Any, lengths: Any) -> Any:
            for layer in self.layers:
                x = layer(x, lengths)
            return x

    return Model(nnx.Rngs(0))


def spec_of(path: str) -> Any:
    """How a parameter lies: heads and the width of the MLP over "model"."""
    from jax.sharding import PartitionSpec as P

    column, row = P(None, "model"), P("model")
    rules = {"query": column, "key": column, "value": column, "up": column, "out": row, "down": row}
    for name, spec in rules.items():
        if f"'{name}'" in path:
            if "bias" in path:
                return P() if spec == row else P("model")
            return spec
    return P()


def step_of(way: str, length: int, batch: int, layers: int) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """A training step, its arguments, and the mesh that it is called in (None where nothing is said of it)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    kind = AxisType.Explicit if way == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    graph, state = nnx.split(model_of(way, layers, mesh))
    place = lambda path, x: jax.device_put(x, NamedSharding(mesh, spec_of(jax.tree_util.keystr(path))))  # noqa: E731
    state = jax.tree_util.tree_map_with_path(place, state)
    rng = np.random.default_rng(0)
    x = jax.device_put(rng.standard_normal((batch, length, WIDTH), np.float32), NamedSharding(mesh, P("data")))
    lengths = jnp.asarray(rng.integers(length // 2, length + 1, batch), jnp.int32)
    lengths = jax.device_put(lengths, NamedSharding(mesh, P("data")))

    def loss(state: Any, x: Any, lengths: Any) -> Any:
        return (nnx.merge(graph, state)(x, lengths) ** 2).mean()

    def step(state: Any, x: Any, lengths: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(state, x, lengths)
        return value, jax.tree.map(lambda x, d: x - 0.1 * d, state, gradients)

    return step, (state, x, lengths), mesh if way == "explicit" else None


def sent(text: str) -> dict[str, dict[str, int]]:
    """The collectives of a compiled program: how many of each kind, and the bytes that they give each device."""
    found = {kind: {"count": 0, "bytes": 0} for kind in KINDS}
    for shapes, kind in re.findall(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(", text):
        found[kind]["count"] += 1
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            found[kind]["bytes"] += BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)
    return {kind: numbers for kind, numbers in found.items() if numbers["count"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("length", 1024), ("batch", 8), ("layers", 2), ("repeat", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for way in options.ways:
        step, arguments, mesh = step_of(way, options.length, options.batch, options.layers)
        start = time.perf_counter()
        if mesh is not None:
            with jax.set_mesh(mesh):
                program = jax.jit(step).lower(*arguments).compile()
        else:
            program = jax.jit(step).lower(*arguments).compile()
        seconds = time.perf_counter() - start
        memory: Any = program.memory_analysis()
        results[way] = {
            "compile_s": round(seconds, 2),
            "loss": float(program(*arguments)[0]),
            "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 1),
            "sent": sent(program.as_text()),
        }
        calls[way] = lambda program=program, arguments=arguments: jax.block_until_ready(program(*arguments))
        print(way, results[way], flush=True)
    times = measure.alternate(calls, options.repeat)
    for way, seconds in measure.medians(times).items():
        results[way]["step_s"] = round(seconds, 3)
        print(f"{way:10} {seconds:7.3f} s", flush=True)
    settings = {name: getattr(options, name) for name in ("length", "batch", "layers", "repeat")}
    found = measure.report(results, ("jax", "flax", "numpy"), width=WIDTH, heads=HEADS, mesh=[2, 4], **settings)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
