"""Hashes of exact results: a new version of a framework, or of this library, that changes one bit is seen.

`python -m maskattn.parity.attention.golden` writes parity_tests/golden.json anew (from NumPy, which every twin equals).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from maskattn import masks
from maskattn.parity.attention.adapters import Adapter, NumpyExact
from maskattn.parity.attention.arrays import cotangent, inputs
from maskattn.parity.attention.case import Case, Shape
from maskattn.typing import NumPyArray

#: Written out rather than drawn from the registry: a golden case must not change when the registry grows.
_SHAPE = Shape(batch=2, q_len=5, kv_len=7, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)
_MASK = (masks.Causal(1) | masks.SlidingWindow(1, 2)) & masks.KeyPadding(np.array([7, 3]))


def golden_cases() -> list[Case]:
    """A handful of cases: every dtype, and every option of attention."""
    full = {"sinks": True, "softcap": 3.0, "scale": 0.5, "bias": "dense"}
    made = [Case(f"golden/{dtype}", "golden", _SHAPE, dtype, _MASK, seed=7) for dtype in _DTYPES]
    made.append(Case("golden/options", "golden", _SHAPE, "float32", _MASK, seed=8, **full))  # type: ignore[arg-type]
    made.append(Case("golden/large", "golden", _SHAPE, "float32", masks.QueryMask(_ROWS), seed=9, spread=60.0))
    dropped = {**full, "dropout_rate": 0.25, "dropout_broadcast": ("batch",)}
    made.append(Case("golden/dropout", "golden", _SHAPE, "float32", _MASK, seed=10, **dropped))  # type: ignore[arg-type]
    return made


_DTYPES = ("float64", "float32", "bfloat16", "float16")
_ROWS = np.array([[1, 0, 1, 1, 1], [0, 1, 1, 1, 0]], dtype=bool)


def hashes(adapter: Adapter, case: Case) -> dict[str, str]:
    """SHA-256 of each result's bytes (little-endian, C order), and of the inputs': a change there is told apart."""
    given, cotangents = inputs(case), cotangent(case)
    results = adapter.run(case, given, None, cotangents)
    arrays = {f"in:{name}": array for name, array in {**given, **{f"d_{n}": a for n, a in cotangents.items()}}.items()}
    arrays |= {name: array for name, array in results.items() if name != "mask"}
    return {name: _hash(array) for name, array in sorted(arrays.items())}


def _hash(array: NumPyArray) -> str:
    little = array if array.dtype.byteorder in "|=<" else array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def main(path: Path = Path("parity_tests/golden.json")) -> None:
    """Write the hashes of every golden case."""
    data = {case.id: hashes(NumpyExact(), case) for case in golden_cases()}
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"{path}: {len(data)} cases")


if __name__ == "__main__":
    main()
