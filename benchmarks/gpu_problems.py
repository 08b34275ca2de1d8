"""What the two halves of gpu.py share: problems, the time that is left, and one line of JSON for each figure."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskattn import masks

MASKS = ("full", "causal", "window", "documents", "padding")


@dataclass(frozen=True)
class Size:
    """[B, N, H, D] of query, key and value."""

    batch: int
    length: int
    heads: int
    width: int

    @property
    def name(self) -> str:
        return f"B {self.batch}, N {self.length}"


SIZES = (Size(2, 4096, 16, 128), Size(1, 16384, 16, 128))
DRY_SIZES = (Size(2, 128, 2, 32), Size(1, 256, 2, 32))


def window_of(size: Size) -> int:
    """Positions that a query sees: itself and those before it."""
    return min(1024, size.length // 4)


def documents_of(size: Size, seed: int = 0) -> np.ndarray[Any, Any]:
    """Lengths of 8 unequal documents in each row: int [B, 8]."""
    rng = np.random.default_rng(seed)
    cuts = np.sort([rng.choice(np.arange(1, size.length), 7, replace=False) for _ in range(size.batch)], 1)
    edges = np.concatenate([np.zeros((size.batch, 1)), cuts, np.full((size.batch, 1), size.length)], 1)
    return np.diff(edges, axis=1).astype(np.int64)


def ids_of(size: Size, seed: int = 0) -> np.ndarray[Any, Any]:
    """The document of each position: int32 [B, N]."""
    return np.stack([np.repeat(np.arange(8, dtype=np.int32), each) for each in documents_of(size, seed)])


def lengths_of(size: Size) -> np.ndarray[Any, Any]:
    """Keys of each row: int32 [B]."""
    return np.array([size.length * 3 // 4 - 5, size.length // 2 + 7][: size.batch], np.int32)


def mask_of(name: str, size: Size, array: Callable[[np.ndarray[Any, Any]], Any], seed: int = 0) -> masks.Mask | None:
    """A mask of this library, with its data made by `array`. True = may attend."""
    if name == "full":
        return None
    if name == "causal":
        return masks.Causal()
    if name == "window":
        return masks.SlidingWindow(window_of(size) - 1, 0)
    if name == "documents":
        return masks.Causal() & masks.Segments(array(ids_of(size, seed)))
    return masks.KeyPadding(array(lengths_of(size)))


def pairs(name: str, size: Size) -> float:
    """Pairs of a query and a key that the mask allows, over rows and heads."""
    n = size.length
    if name == "padding":
        return float(size.heads * n * lengths_of(size).sum())
    rows = [np.array([n])] * size.batch if name in ("full", "causal", "window") else documents_of(size)
    if name == "full":
        return float(size.batch * size.heads) * n * n
    w = window_of(size) if name == "window" else n
    seen = [min(length, w) * (min(length, w) + 1) / 2 + max(0, length - w) * w for row in rows for length in row]
    return float(size.heads * sum(seen))


class Run:
    """One half's run: what is left of the time, and where figures go."""

    def __init__(self, framework: str, dry: bool, seconds: float, folder: Path) -> None:
        self.framework, self.dry, self.folder = framework, dry, folder
        self.until = time.time() + seconds
        self.sizes = DRY_SIZES if dry else SIZES

    def left(self) -> float:
        return self.until - time.time()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While figures are taken, the other half compiles, but times nothing."""
        with open(self.folder / "lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def say(self, **found: Any) -> None:
        line = json.dumps({"framework": self.framework, **found}, default=str)
        print(line, flush=True)
        with open(self.folder / f"{self.framework}.jsonl", "a") as file:
            file.write(line + "\n")

    def case(self, what: str, seconds: float, function: Callable[[], dict[str, Any]], **known: Any) -> None:
        """Say what `function` finds, if it may still begin; what it raises is said, and ends nothing else."""
        if self.left() < seconds:
            return self.say(what=what, **known, left_out=f"it may take {seconds:g} s, and {self.left():.0f} s are left")
        start = time.time()
        try:
            found = function()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.say(what=what, **known, **found, took=round(time.time() - start, 2))


def arguments() -> Run:
    """The run that the parent asks for: framework, dry or not, seconds, folder."""
    framework, dry, seconds, folder = sys.argv[1:5]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return Run(framework, dry == "dry", float(seconds), Path(folder))
