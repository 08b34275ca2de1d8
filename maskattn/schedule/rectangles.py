"""Rectangles that cover what a mask allows: from its tiles, or from what each of its rows allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from maskattn.masks import Mask
from maskattn.schedule.tiles import Schedule, pairs
from maskattn.typing import NumPyArray as Array

__all__ = ["MIXED", "OPEN", "TRIANGLE", "Planes", "Rectangle", "coarser", "from_rows", "from_tiles"]


#: What the mask allows of a rectangle: every pair; those with k - k_lo <= q - q_lo; or it must be asked.
OPEN, TRIANGLE, MIXED = 0, 1, 2

#: Leaving the mask out of so many keys of a row pays for merging one more partial result.
_WORTH_A_MERGE = 512
#: Fewer rows in a row are no rectangle of their own.
_LEAST_ROWS = 16
#: The most pairs that `from_rows` evaluates.
_EVALUATED = 1 << 23


class Rectangle(NamedTuple):
    """Queries q_lo <= q < q_hi, keys k_lo <= k < k_hi, and which of their pairs are allowed."""

    q_lo: int
    q_hi: int
    k_lo: int
    k_hi: int
    kind: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(queries, keys, kind)."""
        return self.q_hi - self.q_lo, self.k_hi - self.k_lo, self.kind

    def moved(self, q: int, k: int) -> Rectangle:
        """The same rectangle, q queries and k keys further."""
        return Rectangle(self.q_lo + q, self.q_hi + q, self.k_lo + k, self.k_hi + k, self.kind)


#: Rectangles of each (batch row, head) that the mask tells apart; no two share a pair.
Planes = dict[tuple[int, int], list[Rectangle]]


def coarser(schedule: Schedule, factor: int) -> Schedule:
    """The schedule with tiles of `factor` times as many queries: full where all of their parts are."""
    plane, i = np.divmod(schedule.entry_rows, max(schedule.q_tiles, 1))
    tiles = -(-schedule.q_tiles // factor)
    keys = (plane * tiles + i // factor) * schedule.kv_tiles + schedule.indices
    keys, inverse = np.unique(keys, return_inverse=True)
    row, index = np.divmod(keys, schedule.kv_tiles)
    parts = np.minimum(factor, schedule.q_tiles - row % tiles * factor)
    full = np.bincount(inverse, schedule.full, len(keys)) == parts
    indptr = np.searchsorted(row, np.arange(schedule.batch * schedule.heads * tiles + 1))
    return replace(
        schedule, q_block=schedule.q_block * factor, indptr=indptr, indices=index.astype(np.int32), full=full
    )


def from_tiles(schedule: Schedule) -> Planes:
    """Runs of adjacent key tiles in each row of tiles; those that adjacent rows have in common as one rectangle."""
    rows, index, full = schedule.entry_rows, schedule.indices, schedule.full
    if not len(index):
        return {}
    apart = np.ones(len(index), bool)
    apart[1:] = (rows[1:] != rows[:-1]) | (index[1:] != index[:-1] + 1)
    differs = apart.copy()
    differs[1:] |= full[1:] != full[:-1]
    run = np.cumsum(apart) - 1
    parts, whole = np.bincount(run, differs), np.bincount(run, full)
    # a run of full and mixed tiles is divided where leaving the mask out of the full ones is worth it
    divided = whole * schedule.kv_block >= _WORTH_A_MERGE * (parts - 1)
    starts = np.flatnonzero(apart | differs & divided[run])
    ends = np.append(starts[1:], len(index))
    mixed = np.add.reduceat(~full, starts) > 0
    plane, i = np.divmod(rows[starts], schedule.q_tiles)
    planes: Planes = {}
    open_: dict[tuple[int, int, int, bool], int] = {}
    columns = (index[starts], index[ends - 1] + 1)
    for p, row, low, high, masked in zip(*(x.tolist() for x in (plane, i, *columns, mixed)), strict=True):
        rectangles = planes.setdefault(divmod(p, schedule.heads), [])
        q_lo, q_hi = row * schedule.q_block, min((row + 1) * schedule.q_block, schedule.q_len)
        at = open_.get((p, low, high, masked))
        if at is not None and rectangles[at].q_hi == q_lo:
            rectangles[at] = rectangles[at]._replace(q_hi=q_hi)
            continue
        open_[p, low, high, masked] = len(rectangles)
        k_lo, k_hi = low * schedule.kv_block, min(high * schedule.kv_block, schedule.kv_len)
        rectangles.append(Rectangle(q_lo, q_hi, k_lo, k_hi, MIXED if masked else OPEN))
    return planes


def from_rows(mask: Mask, schedule: Schedule) -> Planes | None:
    """Rectangles and triangles that hold allowed pairs only, where rows allow one run of keys each (documents, padding,
    causal, a prefix); tiles for the other rows. None where it would take long to find out.
    """
    if int((~schedule.full).sum()) * schedule.q_block * schedule.kv_block > _EVALUATED:
        return None
    low, high, count = _extents(mask, schedule)
    planes: Planes = {}
    for (b, h), tiled in from_tiles(schedule).items():
        p = b * schedule.heads + h
        rectangles, rest = _runs_of_rows(low[p], high[p], count[p])
        rectangles += [x for r in tiled for x in _within(r, rest)]
        planes[b, h] = sorted(rectangles)
    return planes


def _extents(mask: Mask, schedule: Schedule) -> tuple[Array, Array, Array]:
    """The first allowed key of each row, the last plus 1, and how many there are: int64 [planes, q_len]."""
    shape = (schedule.batch * schedule.heads * schedule.q_tiles, schedule.q_block)
    low, high, count = np.full(shape, schedule.kv_len), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    rows, begin = schedule.entry_rows, schedule.indices.astype(np.int64) * schedule.kv_block
    end = np.minimum(begin + schedule.kv_block, schedule.kv_len)
    full = schedule.full
    # entries of a row of tiles are in ascending order, so of the full ones the first, and the last, written last, stay
    low[rows[full][::-1]] = begin[full][::-1, None]
    high[rows[full]] = end[full][:, None]
    np.add.at(count, rows[full], (end - begin)[full][:, None])
    mixed = np.flatnonzero(~full)
    for part, allowed, _ in pairs(mask, schedule, schedule.tiles(mixed)):
        which = rows[mixed[part]]
        some, start = allowed.any(-1), begin[mixed[part]][:, None]
        first, last = allowed.argmax(-1), schedule.kv_block - allowed[..., ::-1].argmax(-1)
        np.minimum.at(low, which, np.where(some, start + first, schedule.kv_len))
        np.maximum.at(high, which, np.where(some, start + last, 0))
        np.add.at(count, which, allowed.sum(-1))
    planes = (schedule.batch * schedule.heads, schedule.q_tiles * schedule.q_block)
    return tuple(x.reshape(planes)[:, : schedule.q_len] for x in (low, high, count))  # type: ignore[return-value]


def _runs_of_rows(low: Array, high: Array, count: Array) -> tuple[list[Rectangle], Array]:
    """The rectangles of adjacent rows that allow the same run of keys, or one key more each; and the other rows."""
    empty = count == 0
    low, high = np.where(empty, 0, low), np.where(empty, 0, high)
    joined = (np.diff(low) == 0) & (count == high - low)[1:] & (count == high - low)[:-1]
    # what leads from each row to the next: 0, the same keys; 1, one more; -1, something else
    grows = np.diff(high)
    step = np.where(joined & (grows == 0), 0, np.where(joined & (grows == 1) & ~empty[:-1], 1, -1))
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(step)) + 1, [len(step)]]) if len(step) else np.array([0, 0])
    rectangles, rest = [], np.ones(len(low), bool)
    after = 0
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        # rows start .. end; the first may belong to the run before
        first, kind = max(start, after), int(step[start]) if len(step) else 0
        if kind < 0 or end + 1 - first < _LEAST_ROWS:
            continue
        after = end + 1
        rest[first:after] = False
        k_lo, k_hi = int(low[first]), int(high[first])
        if kind == 0 and k_hi > k_lo:
            rectangles.append(Rectangle(first, after, k_lo, k_hi, OPEN))
        if kind == 1:
            if k_hi - 1 > k_lo:
                rectangles.append(Rectangle(first, after, k_lo, k_hi - 1, OPEN))
            rectangles.append(Rectangle(first, after, k_hi - 1, k_hi - 1 + after - first, TRIANGLE))
    rest &= ~empty
    return rectangles, rest


def _within(r: Rectangle, rows: Array) -> Iterator[Rectangle]:
    """The parts of a rectangle in the rows that are True."""
    chosen = np.flatnonzero(rows[r.q_lo : r.q_hi]) + r.q_lo
    if not len(chosen):
        return
    for part in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1):
        yield r._replace(q_lo=int(part[0]), q_hi=int(part[-1]) + 1)
