"""What random words and a dropout mask cost in NumPy, PyTorch and JAX, beside jax.random, on the CPU.

    python benchmarks/random_numbers.py [--words 16777216] [--repeat 7] [--json FILE]

All draw the same numbers. They run in alternation, after one call of each; JAX is jitted, PyTorch eager.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import measure
import numpy as np

from maskattn.numerics import dropout, rng
from maskattn_jax import dropout as jax_dropout, rng as jax_rng
from maskattn_torch import dropout as torch_dropout, rng as torch_rng

RATE = 0.1


def calls(words: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is drawn -> who draws it -> the call; jax.random first."""
    sizes = (1, 16, words // 16 // 1024, 1024)
    key = rng.key(3)
    in_jax, in_torch = jax_rng.key(3), torch_rng.key(3)
    theirs = jax.random.key(3)
    bits = jax.jit(lambda key: jax.random.bits(key, (words,)))
    bernoulli = jax.jit(lambda key: jax.random.bernoulli(key, np.float32(1 - RATE), sizes))
    dense = jax.jit(lambda key: jax_dropout.dense(jax_dropout.Dropout(RATE, key), sizes))
    return {
        "bits": {
            "jax.random": lambda: bits(theirs).block_until_ready(),
            "maskattn_jax": lambda: jax_rng.bits(in_jax, words).block_until_ready(),
            "maskattn_torch": lambda: torch_rng.bits(in_torch, words),
            "maskattn": lambda: rng.bits(key, words),
        },
        "dropout mask": {
            "jax.random": lambda: bernoulli(theirs).block_until_ready(),
            "maskattn_jax": lambda: dense(in_jax).block_until_ready(),
            "maskattn_torch": lambda: torch_dropout.dense(torch_dropout.Dropout(RATE, in_torch), sizes),
            "maskattn": lambda: dropout.dense(RATE, key, sizes),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=1 << 24)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results = {}
    for drawn, who in calls(arguments.words).items():
        medians = measure.medians(measure.alternate(who, arguments.repeat))
        ratios = {name: seconds / medians["jax.random"] for name, seconds in medians.items()}
        results[drawn] = {"median_seconds": medians, "ratio_to_jax_random": ratios}
        for name, seconds in medians.items():
            print(f"{drawn:12} {name:14} {1e3 * seconds:8.1f} ms  {ratios[name]:5.2f}x jax.random")
    packages = ("numpy", "jax", "torch")
    report = measure.report(results, packages, words=arguments.words, rate=RATE, repeat=arguments.repeat)
    measure.write(arguments.json, report)


if __name__ == "__main__":
    main()
