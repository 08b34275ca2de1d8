"""Masked attention against its peers: forward at N = 4096, forward and backward at N = 2048, in one run.

    python benchmarks/attention_grid.py [--masks full causal ...] [--passes forward both] [--kernel blockwise]
                                        [--repeat 5] [--no-flex] [--json FILE]

float32, B = 1, H = 8, D = 64, on the same [B, L, H, D] views. Segment ids reach the jitted function as an argument. The
peers get dense masks that were made before; JAX is jitted, PyTorch eager, FlexAttention compiled beforehand. `limit` is
the share of a large float32 product's rate, in the same run, that our kernel reaches on the pairs the mask allows.
"""

from __future__ import annotations

import argparse
from typing import Any

import contenders
import measure
import numpy as np

from maskattn import masks

CHUNK = PREFIX = 512
PASSES = {"forward": (4096, 2), "both": (2048, 7)}  # N, and the matrix products over the pairs that a pass needs


def problem(name: str, length: int, backward: bool) -> contenders.Problem:
    ids = np.repeat(np.arange(8, dtype=np.int32), length // 8)[None]
    made: dict[str, Any] = {
        "full": lambda: None,
        "causal": masks.Causal,
        "window 256": lambda: masks.SlidingWindow(255, 0),
        "8 documents": lambda ids: masks.Segments(ids),
        "prefix 512": lambda: masks.PrefixLM(PREFIX),
        "chunked 512": lambda: masks.Chunked(CHUNK),
    }
    data = (ids,) if name == "8 documents" else ()
    return contenders.Problem(made[name], length, length, data, is_causal=name == "causal", backward=backward)


MASKS = ("full", "causal", "window 256", "8 documents", "prefix 512", "chunked 512")


def pairs(found: contenders.Problem) -> int:
    """How many (query, key) pairs the mask allows."""
    mask = found.mask(*found.data)
    return found.q_len * found.kv_len if mask is None else int(mask.dense(found.q_len, found.kv_len, 1, 1).sum())


def measured(names: tuple[str, ...], which: str, kernel: str, repeat: int, flex: bool) -> dict[str, Any]:
    """What each mask takes in one pass. All calls of all masks alternate: a slow minute of the machine meets one round
    of each, and no median.
    """
    length, products = PASSES[which]
    problems = {name: problem(name, length, which == "both") for name in names}
    calls = {("", x): call for x, call in contenders.product().items()}
    for name, found in problems.items():
        each = {**contenders.in_jax(found, (kernel,)), **contenders.in_torch(found, (kernel,), flex)}
        calls |= {(name, x): call for x, call in each.items()}
    times = measure.medians(measure.alternate(calls, repeat))
    rates = {twin: 2 * 4096**3 / times["", f"{twin} product"] for twin in ("jax", "torch")}
    return {name: summary(found, name, products, times, rates, kernel) for name, found in problems.items()}


def summary(
    found: contenders.Problem,
    name: str,
    products: int,
    times: dict[tuple[str, str], float],
    rates: dict[str, float],
    kernel: str,
) -> dict[str, Any]:
    """Milliseconds, ratios to the peers, and shares of a product's rate, for one mask."""
    own = {x: seconds for (mask, x), seconds in times.items() if mask == name}
    operations = products * 2 * pairs(found) * found.heads * found.head_dim
    ours = {twin: own[f"{twin} {kernel}"] for twin in rates}
    peers = {x: seconds for x, seconds in own.items() if not x.endswith(f" {kernel}")}
    return {
        "milliseconds": {x: 1e3 * seconds for x, seconds in own.items()},
        "speed_up": {
            twin: {x: seconds / ours[twin] for x, seconds in peers.items() if x.startswith(twin) or x == "torch sdpa"}
            | ({"flax nnx": peers["flax nnx"] / ours["jax"]} if twin == "jax" and "flax nnx" in peers else {})
            for twin in ours
        },
        "limit": {twin: operations / ours[twin] / rate for twin, rate in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=MASKS)
    parser.add_argument("--passes", nargs="+", choices=tuple(PASSES), default=tuple(PASSES))
    parser.add_argument("--kernel", default="blockwise")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-flex", action="store_true", help="leave out FlexAttention, which compiles for seconds")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for which in arguments.passes:
        print(f"{which}, N = {PASSES[which][0]} (milliseconds; times faster than the peer)", flush=True)
        flex = not arguments.no_flex and which == "forward"
        results[which] = measured(tuple(arguments.masks), which, arguments.kernel, arguments.repeat, flex)
        for name, found in results[which].items():
            for twin, ratios in found["speed_up"].items():
                own = found["milliseconds"][f"{twin} {arguments.kernel}"]
                against = "  ".join(f"{peer} {ratio:5.2f}x" for peer, ratio in ratios.items())
                print(f"  {name:12} {twin:5} {own:8.1f} ms  limit {found['limit'][twin]:4.0%}  {against}", flush=True)
    measure.write(
        arguments.json,
        measure.report(
            results,
            ("numpy", "jax", "jaxlib", "flax", "torch"),
            kernel=arguments.kernel,
            repeat=arguments.repeat,
            shape={
                "batch": 1,
                "heads": 8,
                "head_dim": 64,
                "dtype": "float32",
                "length": {k: v[0] for k, v in PASSES.items()},
            },
        ),
    )


if __name__ == "__main__":
    main()
