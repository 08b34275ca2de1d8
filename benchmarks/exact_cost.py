"""What the same bits cost: kernel="exact" beside kernel="reference", forward, causal float32, in both twins.

    python benchmarks/exact_cost.py [--length 256] [--repeat 5] [--json FILE]

The kernels run in alternation, so that a slow moment of the machine meets them all. JAX is jitted, PyTorch eager.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import maskattn_jax
import maskattn_torch
from maskattn import masks

KERNELS = ("reference", "exact")


def calls(length: int) -> dict[str, dict[str, Callable[[], Any]]]:
    x = np.random.default_rng(0).standard_normal((3, 2, length, 8, 64)).astype(np.float32)
    mask = masks.Causal()
    in_torch, in_jax = torch.tensor(x), jnp.asarray(x)
    jitted = {k: jax.jit(lambda q, k, v, name=k: maskattn_jax.attention(q, k, v, mask, kernel=name)) for k in KERNELS}
    return {
        "torch": {k: lambda name=k: maskattn_torch.attention(*in_torch, mask, kernel=name) for k in KERNELS},
        "jax": {k: lambda name=k: jitted[name](*in_jax).block_until_ready() for k in KERNELS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results = {}
    for twin, kernels in calls(arguments.length).items():
        times: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
        for call in kernels.values():
            call()
        for _ in range(arguments.repeat):
            for kernel, call in kernels.items():
                start = time.perf_counter()
                call()
                times[kernel].append(time.perf_counter() - start)
        medians = {kernel: statistics.median(values) for kernel, values in times.items()}
        ratio = medians["exact"] / medians["reference"]
        results[twin] = {"median_seconds": medians, "ratio": ratio}
        slow, fast = 1e3 * medians["exact"], 1e3 * medians["reference"]
        print(f"{twin:6} reference {fast:8.1f} ms  exact {slow:8.1f} ms  {ratio:5.0f}x")
    if arguments.json:
        report = {
            "shape": {"batch": 2, "length": arguments.length, "heads": 8, "head_dim": 64, "dtype": "float32"},
            "repeat": arguments.repeat,
            "results": results,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "torch", "jax")},
            "torch_threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
