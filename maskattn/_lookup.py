"""Reading and summarising data at index arrays by arithmetic and indexing: in NumPy, JAX and PyTorch, traced or not.

An index may be an array or an int. Nothing here fails for an index outside the data.
"""

from __future__ import annotations

import math

from maskattn._arithmetic import clip, maximum, never, zero
from maskattn._fields import Array, dtype_name, peek
from maskattn._pairs import fixed
from maskattn.arrays import is_int


def gather(array: Array, *indices: Array, stretch: tuple[int, ...] = (0,)) -> tuple[Array, Array]:
    """(array[indices], inside): where `inside` is False the value means nothing.

    An axis named in `stretch` (by default the first, the batch) that has size 1 is read at 0, whatever the index.
    """
    inside: Array = True
    picked = []
    for axis, index in enumerate(indices):
        size = array.shape[axis]
        if size == 1 and axis in stretch:
            picked.append(0)
            continue
        within = (index >= 0) & (index < size)
        # multiplied, not clipped: 0 is a valid index here, and one product is all that is traced
        picked.append(index * within)
        inside = inside & within
    if 0 in array.shape:
        return zero(inside), inside
    return array[tuple(picked)], inside


def coordinate(position: Array, shape: tuple[int, ...], axis: int) -> Array:
    """The coordinate along an axis of a flat, row-major position."""
    return position // math.prod(shape[axis + 1 :]) % shape[axis]


def lookup(array: Array, *indices: Array, stretch: tuple[int, ...] = (0,)) -> Array:
    """A bool array at the indices; False outside it."""
    value, inside = gather(array, *indices, stretch=stretch)
    return inside if 0 in array.shape else value & inside


def wide(numbers: Array) -> Array:
    """Integers that a position can be added to without wrapping: unsigned and small ones become int64, or, in JAX
    without x64, int32.
    """
    name = dtype_name(numbers)
    if name in ("int32", "int64") or not name.startswith(("int", "uint")):
        return numbers
    return numbers.long() if hasattr(numbers, "detach") else numbers.astype(int)


def at_row(number: Array, b: Array) -> Array:
    """A number that may differ between batch rows, an int or an int array [] or [B], in row b; 0 outside."""
    if is_int(number):
        return number
    number = wide(number)
    if len(number.shape) == 0:
        return number
    entry, inside = gather(number, b)
    return entry * inside


def rows_of(number: Array) -> dict[str, int]:
    """The batch that such a number fixes: {} or {"batch": B}."""
    return {} if is_int(number) or len(number.shape) == 0 else fixed(number.shape[0])


def within(low: Array, high: Array, size: int) -> tuple[Array, Array]:
    """(some, every): whether any of low..high is an index of `size` entries, and whether all are."""
    return (high >= 0) & (low < size), (low >= 0) & (high < size)


def count(keep: Array, b: Array, low: Array, high: Array) -> Array:
    """How many entries of keep[b, low..high] are True; `keep` is bool [B or 1, N], and nothing outside it counts."""
    size = keep.shape[1]
    before = keep.cumsum(1)
    upper, has_upper = gather(before, b, clip(high, -1, size - 1))
    lower, has_lower = gather(before, b, clip(low, 0, size) - 1)
    return upper * has_upper - lower * has_lower


def range_max(values: Array, b: Array, low: Array, high: Array) -> Array:
    """The largest of values[b, low..high]; `values` is [B or 1, N], and the bounds lie inside it.

    A sparse table: the maxima of all runs of 1, 2, 4, ... entries; a range is covered by two runs that may overlap.
    Runs that no range needs, where the bounds can be read now, are not looked at.
    """
    length = high - low + 1
    known = peek(length)
    size = values.shape[1]
    result: Array = 0
    table, run = values, 1
    while run <= size and (known is None or (known >= run).any()):
        if known is None or ((known >= run) & (known < 2 * run)).any():
            first, _ = gather(table, b, low)
            second, _ = gather(table, b, high - run + 1)
            result = result + maximum(first, second) * ((length >= run) & (length < 2 * run))
        kept = table.shape[1] - run
        if kept <= 0:
            break
        table, run = maximum(table[:, :kept], table[:, run:]), 2 * run
    return result


def extent(positions: Array, b: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
    """(least, most, some, every): of positions[b, low..high]; whether some of the range, or all, is inside the data."""
    positions, size = wide(positions), positions.shape[1]
    rows = True if positions.shape[0] == 1 else (b >= 0) & (b < positions.shape[0])
    some, every = (each & rows for each in within(low, high, size))
    if 0 in positions.shape:
        nothing = zero(low, high, b)
        return nothing, nothing, never(some), never(every)
    low, high = clip(low, 0, size - 1), clip(high, 0, size - 1)
    # -1 - x reverses the order and cannot overflow
    return -1 - range_max(-1 - positions, b, low, high), range_max(positions, b, low, high), some, every
