"""How time, memory and compilation grow with the length: kernel="blockwise", float32, B = 1, H = 8, D = 64.

    python benchmarks/attention_length.py [--parts time memory compile] [--longest 65536] [--repeat 3] [--json FILE]

time: forward, from N = 4096 on, with the exponent of a line through the logarithms; the limit is 1.1 for a window,
documents of one size and chunks. memory: forward and backward with a window of 1024, in a process of its own, the peak
above inputs, output and gradients; the limit is 512 MB at N = 32768. compile: tracing, planning and compiling the
forward pass in JAX; the limit is 3 s at N = 16384, and it must not grow with N.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np

from maskattn import masks

HEADS, DIM = 8, 64
TWINS = ("jax", "torch")


def mask_of(name: str, length: int) -> tuple[Any, tuple[Any, ...]]:
    """A mask as a function of its data, and the data."""
    if name == "documents of 512":
        return lambda ids: masks.Segments(ids), (np.arange(length, dtype=np.int32)[None] // 512,)
    fixed = {"causal": masks.Causal(), "window 256": masks.SlidingWindow(255, 0), "chunked 512": masks.Chunked(512)}
    return lambda: fixed[name], ()


def arrays(length: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, length, HEADS, DIM), np.float32) for _ in range(4)]


def in_jax(length: int, name: str) -> tuple[Any, list[Any]]:
    """A jitted forward pass, and its arguments; data of a mask are among them."""
    import jax
    import jax.numpy as jnp

    import maskattn_jax

    mask, data = mask_of(name, length)
    *qkv, _ = arrays(length)
    jitted = jax.jit(lambda q, k, v, *data: maskattn_jax.attention(q, k, v, mask(*data), kernel="blockwise"))
    return jitted, [jnp.asarray(x) for x in (*qkv, *data)]


def forward(twin: str, length: int, name: str) -> Any:
    """A call that returns when its result is there."""
    if twin == "jax":
        jitted, given = in_jax(length, name)
        return lambda: jitted(*given).block_until_ready()
    mask, data = mask_of(name, length)
    *qkv, _ = arrays(length)
    import torch

    import maskattn_torch

    q, k, v = (torch.as_tensor(x) for x in qkv)
    bound = mask(*(torch.as_tensor(x) for x in data))
    return lambda: maskattn_torch.attention(q, k, v, bound, kernel="blockwise")


def times(longest: int, repeat: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("window 256", "documents of 512", "chunked 512"):
        for twin in TWINS:
            lengths = [n for n in (4096, 8192, 16384, 32768, 65536, 131072) if n <= longest]
            seconds = []
            for length in lengths:
                taken = measure.alternate({"": forward(twin, length, name)}, repeat)
                seconds.append(measure.medians(taken)[""])
            exponent = float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])
            found[f"{name}, {twin}"] = {"lengths": lengths, "seconds": seconds, "exponent": exponent}
            listed = "  ".join(f"{1e3 * value:.0f}" for value in seconds)
            print(f"{name:17} {twin:6} {listed} ms  exponent {exponent:.3f}", flush=True)
    return found


def status(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak(twin: str, length: int) -> dict[str, int]:
    """Forward and backward once, after compilation, in this process."""
    mask = masks.SlidingWindow(1023, 0)
    given = arrays(length)
    if twin == "jax":
        import jax
        import jax.numpy as jnp

        import maskattn_jax

        def both(q: Any, k: Any, v: Any, d: Any) -> Any:
            out, pull = jax.vjp(lambda *x: maskattn_jax.attention(*x, mask, kernel="blockwise"), q, k, v)
            return out, pull(d)

        tensors = [jnp.asarray(x) for x in given]
        compiled = jax.jit(both).lower(*tensors).compile()
        run = lambda: jax.block_until_ready(compiled(*tensors))  # noqa: E731
    else:
        import torch

        import maskattn_torch

        *qkv, d = (torch.as_tensor(x) for x in given)

        def run() -> Any:
            for x in qkv:
                x.requires_grad_()
            out = maskattn_torch.attention(*qkv, mask, kernel="blockwise")
            return out, torch.autograd.grad(out, qkv, d)

        small = [torch.zeros(1, 128, HEADS, DIM) for _ in range(3)]
        maskattn_torch.attention(*small, masks.Causal(), kernel="blockwise")  # threads and caches are there
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts from here
    result = run()
    results = 4 * given[0].nbytes
    found = {"peak_bytes": status("VmHWM") - before - results, "inputs_bytes": results, "results_bytes": results}
    del result
    return found


def memory(lengths: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for twin in TWINS:
        found[twin] = {}
        for length in lengths:
            command = [sys.executable, __file__, "--child", twin, str(length)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found[twin][length] = json.loads(result.stdout)
            print(f"memory {twin:6} N = {length:6} {found[twin][length]['peak_bytes'] / 2**20:7.0f} MB", flush=True)
    return found


def compilation(lengths: tuple[int, ...]) -> dict[str, Any]:
    import jax

    found: dict[str, Any] = {}
    for name in ("causal", "window 256", "documents of 512"):
        found[name] = {}
        for length in lengths:
            jax.clear_caches()
            jitted, given = in_jax(length, name)
            start = time.perf_counter()
            jitted.lower(*given).compile()
            found[name][length] = time.perf_counter() - start
        listed = "  ".join(f"N = {n}: {seconds:.2f} s" for n, seconds in found[name].items())
        print(f"compile {name:17} {listed}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=("time", "memory", "compile"))
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(peak(arguments.child[0], int(arguments.child[1]))))
        return
    results: dict[str, Any] = {}
    if "time" in arguments.parts:
        results["time"] = times(arguments.longest, arguments.repeat)
    if "memory" in arguments.parts:
        results["memory"] = memory((8192, 16384, 32768))
    if "compile" in arguments.parts:
        results["compile"] = compilation((2048, 4096, 8192, 16384))
    packages = ("numpy", "jax", "jaxlib", "torch")
    shape = {"batch": 1, "heads": HEADS, "head_dim": DIM, "dtype": "float32"}
    measure.write(arguments.json, measure.report(results, packages, shape=shape, repeat=arguments.repeat))


if __name__ == "__main__":
    main()
