"""Flat positions of a grid: their coordinates, and the coordinates that a run of positions can have."""

from __future__ import annotations

import math
from typing import Any

from maskattn._arithmetic import choose, clip
from maskattn._fields import Array
from maskattn._lookup import coordinate, within
from maskattn._problems import Problems
from maskattn.masks._relational import Relational

Span = tuple[Array, Array]  # the first and the last of numbers in a row


class GridMask(Relational):
    """A mask that compares the coordinates of query and key in a grid, each axis by itself. Nothing outside is allowed.

    A subclass says what holds along one axis, of a pair (`along`) and of a tile (`along_spans`).
    """

    grid: tuple[int, ...]

    @property
    def cells(self) -> tuple[int, ...]:
        """The lengths of the axes that a position counts through, in row-major order."""
        return self.grid

    @property
    def axes(self) -> list[int]:
        """The axes along which anything is asked."""
        return list(range(len(self.cells)))

    def along(self, axis: int, b: Array, i: Array, j: Array) -> Array:
        """Whether coordinate i of a query and j of a key go together on this axis."""
        raise NotImplementedError

    def along_spans(self, axis: int, b: Array, i: Span, j: Span) -> tuple[Array, Array]:
        """(some, every): whether any coordinates of two spans go together, and whether all do; bounds, as in `tile`."""
        raise NotImplementedError

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        size = math.prod(self.cells)
        result = (q >= 0) & (q < size) & (k >= 0) & (k < size)
        for axis in self.axes:
            i, j = coordinate(q, self.cells, axis), coordinate(k, self.cells, axis)
            result = result & self.along(axis, b, i, j)
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        size = math.prod(self.cells)
        (q_some, q_every), (k_some, k_every) = within(q_lo, q_hi, size), within(k_lo, k_hi, size)
        some, every = q_some & k_some, q_every & k_every
        q_lo, q_hi, k_lo, k_hi = (clip(end, 0, size - 1) for end in (q_lo, q_hi, k_lo, k_hi))
        q_spans, k_spans = spans(q_lo, q_hi, self.cells), spans(k_lo, k_hi, self.cells)
        for axis in self.axes:
            some_here, every_here = self.along_spans(axis, b, q_spans[axis], k_spans[axis])
            some, every = some & some_here, every & every_here
        return some, every

    def sizes(self) -> dict[str, int]:
        size = math.prod(self.cells)
        return {"q_len": size, "kv_len": size}


class WindowMask(GridMask):
    """A mask of a grid that is cut into windows, shifted along each axis."""

    window: Any
    shift: Any

    def _check(self, problems: Problems) -> None:
        """window does not divide grid, or shift is not in [0, window), on some axis"""
        grid, window, shift = self.grid, self.window, self.shift
        if any(n % w for n, w in zip(grid, window, strict=True)):
            problems.value(f"grid must be a multiple of window on every axis, got grid {grid} and window {window}")
        if any(not 0 <= s < w for s, w in zip(shift, window, strict=True)):
            problems.value(f"shift must be at least 0 and less than window on every axis, got {shift} and {window}")


def equal(i: Span, j: Span) -> tuple[Array, Array]:
    """(some, every): whether any number of one span equals one of the other, and whether all do."""
    return (i[0] <= j[1]) & (j[0] <= i[1]), (i[0] == i[1]) & (j[0] == j[1]) & (i[0] == j[0])


def spans(low: Array, high: Array, shape: tuple[int, ...]) -> list[Span]:
    """Per axis, bounds on the coordinate over the positions low..high.

    An axis is bounded by its ends where all axes before it have one coordinate, else by the whole axis.
    """
    single: Array = True
    bounds: list[Span] = []
    for axis, size in enumerate(shape):
        below = math.prod(shape[axis + 1 :])
        first, last = low // below, high // below  # counts from the grid's origin, axes before included
        bounds.append((choose(single, first % size, 0), choose(single, last % size, size - 1)))
        single = single & (first == last)
    return bounds
