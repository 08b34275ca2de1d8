"""Flat positions of a grid: their coordinates, and the coordinates that a run of positions can have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from maskattn._fields import Array
from maskattn._problems import Problems


def check_windows(problems: Problems, grid: Any, window: Any, shift: Any) -> tuple[Any, Any, Any]:
    """grid, window and shift as tuples of ints; window must divide grid, and 0 <= shift < window, on every axis."""
    grid = problems.integers("grid", grid, minimum=1)
    if problems.faults:
        return grid, window, shift
    if not grid:
        problems.value("grid must have at least one axis, got ()")
        return grid, window, shift
    window = problems.integers("window", window, minimum=1, length=len(grid))
    shift = problems.integers("shift", shift, length=len(grid))
    if not problems.faults:
        if any(n % w for n, w in zip(grid, window, strict=True)):
            problems.value(f"grid must be a multiple of window on every axis, got grid {grid} and window {window}")
        if any(not 0 <= s < w for s, w in zip(shift, window, strict=True)):
            problems.value(f"shift must be at least 0 and less than window on every axis, got {shift} and {window}")
    return grid, window, shift


def inside(size: int, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
    """(some, every): whether any pair of a tile, and whether all, lie in a grid of `size` positions."""
    some = (q_hi >= 0) & (q_lo < size) & (k_hi >= 0) & (k_lo < size)
    return some, (q_lo >= 0) & (q_hi < size) & (k_lo >= 0) & (k_hi < size)


def coordinates(position: Array, shape: tuple[int, ...]) -> list[Array]:
    """Row-major coordinates of a flat position."""
    found = []
    for axis, size in enumerate(shape):
        found.append(position // math.prod(shape[axis + 1 :]) % size)
    return found


def spans(low: Array, high: Array, shape: tuple[int, ...]) -> Iterator[tuple[Array, Array]]:
    """Per axis, bounds on the coordinate over the positions low..high.

    An axis is bounded by its ends where all axes before it have one coordinate, else by the whole axis.
    """
    single: Array = True
    for axis, size in enumerate(shape):
        below = math.prod(shape[axis + 1 :])
        first, last = low // below, high // below  # counts from the grid's origin, axes before included
        yield first % size * single, last % size * single + (size - 1) * (single ^ True)
        single = single & (first == last)
