"""What the same bits cost: kernel="exact" beside kernel="reference", forward, causal float32, in both twins.

    python benchmarks/exact_cost.py [--length 256] [--repeat 5] [--json FILE]

The kernels run in alternation, so that a slow moment of the machine meets them all. JAX is jitted, PyTorch eager.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
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
        medians = measure.medians(measure.alternate(kernels, arguments.repeat))
        ratio = medians["exact"] / medians["reference"]
        results[twin] = {"median_seconds": medians, "ratio": ratio}
        slow, fast = 1e3 * medians["exact"], 1e3 * medians["reference"]
        print(f"{twin:6} reference {fast:8.1f} ms  exact {slow:8.1f} ms  {ratio:5.0f}x")
    shape = {"batch": 2, "length": arguments.length, "heads": 8, "head_dim": 64, "dtype": "float32"}
    packages = ("numpy", "jax", "torch")
    measure.write(arguments.json, measure.report(results, packages, shape=shape, repeat=arguments.repeat))


if __name__ == "__main__":
    main()
