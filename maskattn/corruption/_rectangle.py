"""Rectangles in a grid of patches."""

from __future__ import annotations

from maskattn.corruption._ops import Array, Ops


def rectangle(ops: Ops, grid: tuple[int, int], top: Array, left: Array, height: Array, width: Array) -> Array:
    """bool [..., *grid]: True inside the rectangles whose corners and sides are int [...]."""
    row, column = ops.arange(grid[0]), ops.arange(grid[1])
    top, left, height, width = (x[..., None] for x in (top, left, height, width))
    rows, columns = (row >= top) & (row < top + height), (column >= left) & (column < left + width)
    return rows[..., :, None] & columns[..., None, :]
