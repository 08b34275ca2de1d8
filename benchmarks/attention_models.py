"""The short shapes that models really use: what `auto` chooses, beside the other kernels and the framework's own.

    python benchmarks/attention_models.py [--only BERT] [--repeat 9] [--json FILE]

float32, the same [B, L, H, D] views. Lengths reach the jitted function as arguments, and the peers get dense masks that
were made before. Each kernel's time is given as a multiple of that of the framework's own attention. "!" marks where
`auto` takes more than 1.1 times as long as that, or the kernel that it chooses more than 1.1 times as long as another.
"""

from __future__ import annotations

import argparse
from typing import Any

import contenders
import measure
import numpy as np

from maskattn import masks

KERNELS = ("auto", "blockwise", "fused")
LIMIT = 1.1


def problems() -> dict[str, contenders.Problem]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(32, 129, 16).astype(np.int32)
    cached = np.full(1, 4096, np.int32)
    short = np.full(1, 1500, np.int32)
    swin = masks.ShiftedWindow((56, 56), 7, 3)
    made = contenders.Problem
    shapes: dict[str, contenders.Problem] = {
        "ViT, 8 x 197, H = 12": made(lambda: None, 197, 197, batch=8, heads=12, kv_heads=12),
        "Swin, 64 windows of 49, H = 3": made(lambda: swin, 49, 49, batch=64, heads=3, kv_heads=3, head_dim=32),
        "BERT, 16 x 128, H = 12, padding": made(
            lambda n: masks.KeyPadding(n), 128, 128, (lengths,), batch=16, heads=12, kv_heads=12
        ),
        "decoding, S = 4096": made(lambda: None, 1, 4096),
        "decoding, S = 4096, all of a cache in use": made(lambda n: masks.KeyPadding(n), 1, 4096, (cached,)),
        "decoding, S = 4096, 1500 of a cache in use": made(lambda n: masks.KeyPadding(n), 1, 4096, (short,)),
        "GPT, 4 x 256, causal": made(masks.Causal, 256, 256, batch=4, is_causal=True),
        "GPT, 4 x 256, causal, H = 8, K = 2": made(masks.Causal, 256, 256, batch=4, kv_heads=2, is_causal=True),
    }
    trained = [name for name in shapes if "decoding" not in name]
    both = {f"{name}, and backward": made(**{**vars(shapes[name]), "backward": True}) for name in trained}
    return shapes | both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="the shapes whose name contains this")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name, problem in problems().items():
        if arguments.only not in name:
            continue
        results[name] = {}
        chosen = contenders.chosen(problem)
        for twin, own, calls in (
            ("jax", "jax.nn", contenders.in_jax(problem, KERNELS)),
            ("torch", "torch sdpa", contenders.in_torch(problem, KERNELS)),
        ):
            times = measure.medians(measure.alternate(calls, arguments.repeat, warm_up=3))
            found = {x: 1e3 * seconds for x, seconds in times.items()}
            ratios = {kernel: times[f"{twin} {kernel}"] / times[own] for kernel in KERNELS}
            best = min(ratios["blockwise"], ratios["fused"])
            slow = ratios["auto"] > LIMIT or ratios[chosen[twin]] > LIMIT * best
            results[name][twin] = {"milliseconds": found, "of_the_framework's_own": ratios, "chosen": chosen[twin]}
            shown = "  ".join(f"{kernel} {ratio:4.2f}" for kernel, ratio in ratios.items())
            line = f"{name:48} {twin:6} {own:10} {1e3 * times[own]:7.2f} ms  {shown}  {chosen[twin]}"
            print(f"{line} !" if slow else line, flush=True)
    packages = ("numpy", "jax", "jaxlib", "torch")
    measure.write(arguments.json, measure.report(results, packages, repeat=arguments.repeat))


if __name__ == "__main__":
    main()
