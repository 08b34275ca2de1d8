"""What laying out a permuted matrix costs beside copying one that lies as it should, by dtype and permutation.

    python benchmarks/contiguous.py [--side 4096] [--repeat 5] [--json FILE]

Rates are of the bytes that come out. `plain copy` is NumPy's, of an array that is contiguous already: the limit.
"""

from __future__ import annotations

import argparse

import measure
import numpy as np

from maskattn._contiguous import contiguous

DTYPES = {"float32": np.uint32, "bfloat16": np.uint16, "float8": np.uint8}  # moved as integers of their size


def views(array: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    side = len(array)
    return {
        "[in, out] of [out, in]": array.T,
        "[E, H, D] of [H*D, E]": array.reshape(heads, side // heads, side).transpose(2, 0, 1),
        "[D, H, E] of [H*D, E]": array.reshape(heads, side // heads, side).transpose(1, 0, 2),
        "[D, E, H] of [H*D, E]": array.reshape(heads, side // heads, side).transpose(1, 2, 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results = {}
    for dtype, unsigned in DTYPES.items():
        array = np.ones((arguments.side, arguments.side), unsigned)
        for name, view in views(array, arguments.heads).items():
            out = np.zeros(view.shape, view.dtype)
            calls = {
                "plain copy": lambda out=out, array=array: np.copyto(out.reshape(array.shape), array),
                "contiguous": lambda out=out, view=view: contiguous(view, out),
                "NumPy's copy": lambda out=out, view=view: np.copyto(out, view),
            }
            times = measure.medians(measure.alternate(calls, arguments.repeat))
            rates = {call: view.nbytes / seconds / 1e9 for call, seconds in times.items()}
            results[f"{dtype} {name}"] = rates | {"times NumPy": rates["contiguous"] / rates["NumPy's copy"]}
            row = "   ".join(f"{call} {rate:5.2f} GB/s" for call, rate in rates.items())
            print(f"{dtype:8} {name:24} {row}")
    settings = {"side": arguments.side, "heads": arguments.heads, "repeat": arguments.repeat}
    measure.write(arguments.json, measure.report(results, **settings))


if __name__ == "__main__":
    main()
