"""Which tiles of the score matrix are empty, full or mixed, found without building the matrix.

`schedule` asks a mask about large squares of tiles first (`Mask.tile`) and divides only those that are neither empty
nor full, so that its cost follows the border of the mask and the tiles that remain, not L x S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskattn._fields import peek
from maskattn._pairs import restrict
from maskattn._problems import Problems
from maskattn.masks._core import Mask, require_mask

__all__ = ["EMPTY", "FULL", "MIXED", "Schedule", "empty_rows", "reached", "schedule"]

EMPTY, MIXED, FULL = 0, 1, 2

#: a square that is neither empty nor full is divided into FAN x FAN squares
_FAN = 8
#: the most entries that one step works on at a time
_LIMIT = 1 << 21

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tiles that are not empty, as compressed rows: for each query tile its key tiles, in ascending order.

    Tile (i, j) holds queries i * q_block and following, keys j * kv_block and following; the last of a row or column
    may be cut short by the lengths. A *full* tile allows every pair (that exists), an *empty* one none; a *mixed* one
    may be anything, since the bounds a mask gives may be loose.

    Attributes:
        batch, heads: the axes on which the mask depends; 1 where one row, or head, serves all.
        q_len, kv_len, q_block, kv_block: sizes.
        indptr: int64 [batch * heads * q_tiles + 1]: where the entries of each query tile start, row-major.
        indices: int32 [entries]: the key tile.
        full: bool [entries].
    """

    batch: int
    heads: int
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    indptr: Array
    indices: Array
    full: Array

    @property
    def q_tiles(self) -> int:
        """Tiles along the queries."""
        return -(-self.q_len // self.q_block)

    @property
    def kv_tiles(self) -> int:
        """Tiles along the keys."""
        return -(-self.kv_len // self.kv_block)

    @property
    def counts(self) -> dict[str, int]:
        """How many tiles are empty, mixed and full."""
        full, entries = int(self.full.sum()), len(self.indices)
        tiles = self.batch * self.heads * self.q_tiles * self.kv_tiles
        return {"empty": tiles - entries, "mixed": entries - full, "full": full}

    @property
    def skipped(self) -> float:
        """The share of tiles that a kernel skips; 0 where there are none."""
        counts = self.counts
        return counts["empty"] / max(sum(counts.values()), 1)

    def row(self, b: int, h: int, i: int) -> tuple[Array, Array]:
        """(indices, full) of query tile `i` of batch row `b` and head `h`."""
        at = self._plane(b, h) * self.q_tiles + i
        entries = slice(self.indptr[at], self.indptr[at + 1])
        return self.indices[entries], self.full[entries]

    def states(self) -> Array:
        """EMPTY, MIXED or FULL of every tile: int8 [batch, heads, q_tiles, kv_tiles]."""
        found = np.zeros((self.batch * self.heads * self.q_tiles, self.kv_tiles), np.int8)
        found[self._rows(), self.indices] = np.where(self.full, FULL, MIXED)
        return found.reshape(self.batch, self.heads, self.q_tiles, self.kv_tiles)

    def _plane(self, b: int, h: int) -> int:
        return (b if self.batch > 1 else 0) * self.heads + (h if self.heads > 1 else 0)

    def _rows(self) -> Array:
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


def schedule(
    mask: Mask,
    batch: int | None,
    heads: int | None,
    q_len: int,
    kv_len: int,
    q_block: int = 128,
    kv_block: int = 128,
    *,
    exact: bool = False,
) -> Schedule:
    """The tiles that `mask` (True = may attend) leaves to do, of q_block queries by kv_block keys.

    Args:
        mask: its data must be readable now: not traced.
        batch, heads: None takes them from the data.
        exact: evaluate each pair of the tiles that the mask's bounds leave undecided, so that no mixed tile is in truth
            empty or full.

    Raises:
        TypeError, ValueError: an argument is wrong, the sizes conflict with the mask's data, or the data are traced.
    """
    problems = Problems("schedule")
    q_block, kv_block = problems.integer("q_block", q_block, 1), problems.integer("kv_block", kv_block, 1)
    problems.raise_if_any()
    mask, layout = _settle("schedule", mask, batch, heads, q_len, kv_len, q_block, kv_block)
    mixed, runs = _Tiles(*np.zeros((4, 0), np.int64)), []
    for span, squares, rest in _walk(mask, layout):
        runs.append(_runs(squares, span, layout, FULL))
        mixed = rest
    if exact:
        some, every = _decide(mask, layout, mixed)
        runs.append(_runs(_Tiles(*(x[every] for x in mixed)), 1, layout, FULL))
        mixed = _Tiles(*(x[some & ~every] for x in mixed))
    runs.append(_runs(mixed, 1, layout, MIXED))
    rows, starts, lengths, states = _sorted(runs)
    # entry n of a run that begins at entry m of all is its start + n - m
    begins = np.cumsum(lengths) - lengths
    indices = np.arange(lengths.sum()) - np.repeat(begins - starts, lengths)
    per_row = np.zeros(layout.batch * layout.heads * layout.q_tiles, np.int64)
    np.add.at(per_row, rows, lengths)
    indptr = np.concatenate([[0], np.cumsum(per_row)])
    full = np.repeat(states == FULL, lengths)
    return Schedule(*layout, indptr, indices.astype(np.int32), full)


def empty_rows(mask: Mask, batch: int | None, heads: int | None, q_len: int, kv_len: int) -> Array:
    """Which rows may attend to nothing: bool [batch, heads, q_len], size 1 on axes that the mask does not read.

    Raises:
        TypeError, ValueError: as `schedule`.
    """
    return ~_reached("empty_rows", mask, batch, heads, q_len, kv_len)[0]


def reached(mask: Mask, batch: int | None, heads: int | None, q_len: int, kv_len: int) -> tuple[Array, Array]:
    """Which rows may attend to something, and which keys something may attend to.

    Returns:
        bool [batch, heads, q_len] and bool [batch, heads, kv_len], size 1 on axes that the mask does not read.

    Raises:
        TypeError, ValueError: as `schedule`.
    """
    return _reached("reached", mask, batch, heads, q_len, kv_len)


def _reached(where: str, mask: Mask, *sizes: Any) -> tuple[Array, Array]:
    batch, heads, q_len, kv_len = sizes
    block = 128
    mask, layout = _settle(where, mask, batch, heads, q_len, kv_len, block, block)
    found = schedule(mask, batch, heads, q_len, kv_len, block, block)
    planes = found.batch * found.heads
    plane, i = np.divmod(found._rows(), max(found.q_tiles, 1))
    j = found.indices.astype(np.int64)
    rows = np.zeros((planes, found.q_tiles, block), bool)
    keys = np.zeros((planes, found.kv_tiles, block), bool)
    rows[plane[found.full], i[found.full]] = True
    keys[plane[found.full], j[found.full]] = True
    open_ = ~found.full & ~(rows[plane, i, 0] & keys[plane, j, 0])
    plane, i, j = plane[open_], i[open_], j[open_]
    b, h = np.divmod(plane, found.heads)
    for part, allowed, _ in _pairs(mask, layout, _Tiles(b, h, i, j)):
        np.logical_or.at(rows, (plane[part], i[part]), allowed.any(2))
        np.logical_or.at(keys, (plane[part], j[part]), allowed.any(1))
    shape = (found.batch, found.heads)
    rows, keys = (x.reshape(*shape, x.shape[1] * block) for x in (rows, keys))
    return rows[..., :q_len], keys[..., :kv_len]


class _Tiles(NamedTuple):
    """A list of tiles, or of squares of tiles: int64 [count] each."""

    b: Array
    h: Array
    q: Array
    k: Array


class _Layout(NamedTuple):
    batch: int
    heads: int
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int

    @property
    def q_tiles(self) -> int:
        return -(-self.q_len // self.q_block)

    @property
    def kv_tiles(self) -> int:
        return -(-self.kv_len // self.kv_block)


def _settle(where: str, mask: Any, *sizes: Any) -> tuple[Mask, _Layout]:
    """The mask with its data in NumPy, and the sizes, 1 on axes that it does not read."""
    batch, heads, q_len, kv_len, q_block, kv_block = sizes
    require_mask(where, mask)

    def concrete(array: Any) -> Array:
        found = peek(array)
        if found is None:
            raise ValueError(f"{where}: the data of {mask!r} are traced, and must be read now: call it outside jit")
        return found

    mask = mask.map_data(concrete)
    settled = mask.settle(q_len, kv_len, batch, heads)
    rows = settled["batch"] if "b" in mask.depends or not settled["batch"] else 1
    columns = settled["heads"] if "h" in mask.depends or not settled["heads"] else 1
    return mask, _Layout(rows, columns, settled["q_len"], settled["kv_len"], q_block, kv_block)


def _walk(mask: Mask, layout: _Layout) -> Iterator[tuple[int, _Tiles, _Tiles]]:
    """(span, full squares, mixed squares) of span x span tiles, from the largest to single tiles; `full` are new."""
    if not layout.q_tiles or not layout.kv_tiles:
        return
    span = _FAN
    while span < max(layout.q_tiles, layout.kv_tiles):
        span *= _FAN
    b, h = np.divmod(np.arange(layout.batch * layout.heads), max(layout.heads, 1))
    squares = _Tiles(b, h, b * 0, b * 0)
    step = _LIMIT // _FAN**2
    while span > 1:
        span //= _FAN
        parts = [_Tiles(*(x[start : start + step] for x in squares)) for start in range(0, len(squares.b), step)]
        found = [_divide(mask, layout, part, span) for part in parts]
        full, squares = _joined([f for f, _ in found]), _joined([m for _, m in found])
        yield span, full, squares


def _joined(lists: list[_Tiles]) -> _Tiles:
    nothing = _Tiles(*np.zeros((4, 0), np.int64))
    return _Tiles(*(np.concatenate(parts) for parts in zip(nothing, *lists, strict=True)))


def _divide(mask: Mask, layout: _Layout, squares: _Tiles, span: int) -> tuple[_Tiles, _Tiles]:
    """The full and the mixed ones among the parts, of span x span tiles, of larger squares."""
    b, h = squares.b[:, None, None], squares.h[:, None, None]
    q = squares.q[:, None, None] * _FAN + np.arange(_FAN)[:, None]
    k = squares.k[:, None, None] * _FAN + np.arange(_FAN)
    q_size, k_size = span * layout.q_block, span * layout.kv_block
    # a part beyond the lengths is asked about as if it were the last position, and dropped
    q_lo, q_hi = np.minimum(q * q_size, layout.q_len - 1), np.minimum((q + 1) * q_size, layout.q_len) - 1
    k_lo, k_hi = np.minimum(k * k_size, layout.kv_len - 1), np.minimum((k + 1) * k_size, layout.kv_len) - 1
    some, every = mask.tile(b, h, q_lo, q_hi, k_lo, k_hi)
    some = some & (q * q_size < layout.q_len) & (k * k_size < layout.kv_len)
    return _picked(squares, some & every), _picked(squares, some & ~every)


def _picked(squares: _Tiles, chosen: Array) -> _Tiles:
    at, i, j = np.nonzero(chosen)
    return _Tiles(squares.b[at], squares.h[at], squares.q[at] * _FAN + i, squares.k[at] * _FAN + j)


def _runs(squares: _Tiles, span: int, layout: _Layout, state: int) -> tuple[Array, Array, Array, Array]:
    """(row, start, length, state) of the runs of key tiles that squares of span x span tiles have in their rows."""
    q = squares.q[:, None] * span + np.arange(span)
    start = squares.k[:, None] * span
    row = (squares.b * layout.heads + squares.h)[:, None] * layout.q_tiles + q
    inside = q < layout.q_tiles
    length = np.minimum(span, layout.kv_tiles - start)
    shape = row.shape
    return (
        row[inside],
        np.broadcast_to(start, shape)[inside],
        np.broadcast_to(length, shape)[inside],
        np.full(int(inside.sum()), state),
    )


def _sorted(runs: list[tuple[Array, Array, Array, Array]]) -> tuple[Array, Array, Array, Array]:
    """All runs, by row and start."""
    row, start, length, state = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    order = np.lexsort((start, row))
    return row[order], start[order], length[order], state[order]


def _pairs(mask: Mask, layout: _Layout, tiles: _Tiles) -> Iterator[tuple[slice, Array, Array]]:
    """(which tiles, allowed, exists) a few tiles at a time, bool [tiles, q_block, kv_block]; allowed only if exists."""
    step = max(1, _LIMIT // (layout.q_block * layout.kv_block))
    for start in range(0, len(tiles.b), step):
        part = slice(start, start + step)
        b, h, q, k = (x[part, None, None] for x in tiles)
        q = q * layout.q_block + np.arange(layout.q_block)[:, None]
        k = k * layout.kv_block + np.arange(layout.kv_block)
        exists = (q < layout.q_len) & (k < layout.kv_len)
        yield part, mask.allowed(*restrict(mask, b, h, q, k)) & exists, exists


def _decide(mask: Mask, layout: _Layout, tiles: _Tiles) -> tuple[Array, Array]:
    """Whether some pair, and whether every pair, of each tile is allowed."""
    some, every = np.zeros((2, len(tiles.b)), bool)
    for part, allowed, exists in _pairs(mask, layout, tiles):
        some[part] = allowed.any((1, 2))
        every[part] = (allowed | ~exists).all((1, 2))
    return some, every
