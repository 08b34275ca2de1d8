"""What the schedule of a long mask costs: median time and peak memory, per mask.

    python benchmarks/schedule.py [--length 131072] [--block 128] [--repeat 9] [--json FILE]

The limit for a static mask of length 131072 in tiles of 128 x 128 is 50 ms and no L x S memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc

import measure
import numpy as np

from maskattn import masks
from maskattn.schedule import Schedule


def cases(length: int) -> dict[str, masks.Mask]:
    side = 1 << (length.bit_length() // 2)
    documents = np.sort(np.random.default_rng(0).integers(0, 64, (1, length)), axis=1)
    return {
        "full": masks.Full(),
        "causal": masks.Causal(),
        "causal & window(255)": masks.Causal() & masks.SlidingWindow(255),
        "causal & window(4096)": masks.Causal() & masks.SlidingWindow(4096),
        "prefix(5000)": masks.PrefixLM(5000),
        "windows of 16 x 16": masks.WindowPartition((length // side, side), 16, 8),
        "64 packed documents, causal": masks.Causal() & masks.Segments(documents),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=131072)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    sizes = (1, 1, arguments.length, arguments.length, arguments.block, arguments.block)
    results = {}
    for name, mask in cases(arguments.length).items():
        Schedule.of(mask, *sizes)
        times = []
        for _ in range(arguments.repeat):
            start = time.perf_counter()
            found = Schedule.of(mask, *sizes)
            times.append(time.perf_counter() - start)
        tracemalloc.start()
        Schedule.of(mask, *sizes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        median = statistics.median(times)
        results[name] = {"median_ms": 1e3 * median, "peak_bytes": peak, "skipped": found.skipped, **found.counts}
        print(f"{1e3 * median:8.1f} ms {peak / 1e6:8.1f} MB {found.skipped:8.2%} skipped  {name}")
    settings = {"length": arguments.length, "block": arguments.block, "repeat": arguments.repeat}
    measure.write(arguments.json, measure.report(results, **settings))


if __name__ == "__main__":
    main()
