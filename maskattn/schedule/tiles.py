"""Which tiles of the score matrix are empty, full or mixed, found without building the matrix.

`Schedule.of` asks a mask about large squares of tiles first (`Mask.tile`) and divides only those that are neither empty
nor full, so that its cost follows the border of the mask and the tiles that remain, not L x S.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maskattn._fields import peek
from maskattn._pairs import restrict
from maskattn._problems import Problems
from maskattn.masks import Mask, require_mask
from maskattn.typing import NumPyArray as Array

__all__ = ["EMPTY", "FULL", "MIXED", "Schedule", "Tiles", "Tiling", "pairs"]

EMPTY, MIXED, FULL = 0, 1, 2
"""What a tile is, as tables of tiles have it: none of its pairs is allowed, some are, or all."""

#: a square that is neither empty nor full is divided into FAN x FAN squares
_FAN = 8
#: the most parts of squares, and the most pairs, that one step works on at a time
_PARTS, PAIRS = 1 << 21, 1 << 19


class Tiles(NamedTuple):
    """A list of tiles, or of squares of tiles: int64 [count] each."""

    b: Array
    h: Array
    q: Array
    k: Array

    def some(self, chosen: Array | slice) -> Tiles:
        """Those that are chosen, by a bool array, numbers or a slice."""
        return Tiles(*(x[chosen] for x in self))


@dataclass(frozen=True, eq=False)
class Tiling:
    """The scores divided into tiles: (i, j) holds queries i * q_block and following, keys j * kv_block and following.

    The last tile of a row or column may be cut short by the lengths.

    Attributes:
        batch, heads: the axes on which the mask depends; 1 where one row, or head, serves all.
        q_len, kv_len, q_block, kv_block: sizes.
    """

    batch: int
    heads: int
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int

    @property
    def q_tiles(self) -> int:
        """Tiles along the queries."""
        return -(-self.q_len // self.q_block)

    @property
    def kv_tiles(self) -> int:
        """Tiles along the keys."""
        return -(-self.kv_len // self.kv_block)


@dataclass(frozen=True, eq=False)
class Schedule(Tiling):
    """The tiles that are not empty, as compressed rows: for each query tile its key tiles, in ascending order.

    A *full* tile allows every pair (that exists), an *empty* one none; a *mixed* one may be anything, since the bounds
    that a mask gives may be loose.

    Attributes:
        batch, heads, q_len, kv_len: the sizes; 1 on axes that the mask does not read.
        q_block, kv_block: queries and keys of a tile.
        indptr: int64 [batch * heads * q_tiles + 1]: where the entries of each query tile start, row-major.
        indices: int32 [entries]: the key tile.
        full: bool [entries].
    """

    indptr: Array
    indices: Array
    full: Array

    @classmethod
    def of(
        cls,
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
            batch, heads, q_len, kv_len: the sizes; None takes them from the data.
            exact: evaluate each pair of the tiles that the mask's bounds leave undecided, so that no mixed tile is in
                truth empty or full.

        Raises:
            TypeError, ValueError: an argument is wrong, the sizes conflict with the mask's data, or those are traced.
        """
        problems = Problems("schedule")
        blocks = problems.integer("q_block", q_block, 1), problems.integer("kv_block", kv_block, 1)
        problems.raise_if_any()
        mask = readable("schedule", mask)
        return _schedule(mask, Tiling(*settled(mask, (batch, heads, q_len, kv_len)), *blocks), exact)

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
        """(indices, full), int32 and bool [entries], of query tile `i` of batch row `b` and head `h`."""
        at = self._plane(b, h) * self.q_tiles + i
        entries = slice(self.indptr[at], self.indptr[at + 1])
        return self.indices[entries], self.full[entries]

    def states(self) -> Array:
        """EMPTY, MIXED or FULL of every tile: int8 [batch, heads, q_tiles, kv_tiles]."""
        states = np.zeros((self.batch * self.heads * self.q_tiles, self.kv_tiles), np.int8)
        states[self.entry_rows, self.indices] = np.where(self.full, FULL, MIXED)
        return states.reshape(self.batch, self.heads, self.q_tiles, self.kv_tiles)

    def _plane(self, b: int, h: int) -> int:
        return (b if self.batch > 1 else 0) * self.heads + (h if self.heads > 1 else 0)

    @property
    def entry_rows(self) -> Array:
        """The row of tiles of each entry, counted over batch rows and heads: int64 [entries]."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def tiles(self, chosen: Array) -> Tiles:
        """The places of the entries that are chosen (bool [entries])."""
        plane, q = np.divmod(self.entry_rows[chosen], max(self.q_tiles, 1))
        return Tiles(*np.divmod(plane, self.heads or 1), q, self.indices[chosen].astype(np.int64))


def readable(where: str, mask: Mask) -> Mask:
    """The mask with its data in NumPy.

    Raises:
        TypeError: this is no mask. ValueError: its data are traced.
    """
    require_mask(where, mask)

    def concrete(array: object) -> Array:
        numbers = peek(array)
        if numbers is None:
            raise ValueError(f"{where}: the data of {mask!r} are traced, and must be read now: call it outside jit")
        return numbers

    return mask.map_data(concrete)


def settled(
    mask: Mask, sizes: tuple[int | None, int | None, int, int], depends: frozenset[str] = frozenset()
) -> tuple[int, int, int, int]:
    """The sizes (batch, heads, q_len, kv_len), 1 on axes that neither the mask nor `depends` reads.

    Raises:
        TypeError, ValueError: a size is wrong or conflicts with the mask's data.
    """
    batch, heads, q_len, kv_len = sizes
    fixed, depends = mask.settle(q_len, kv_len, batch, heads), depends | mask.depends
    rows = fixed["batch"] if "b" in depends else min(fixed["batch"], 1)
    columns = fixed["heads"] if "h" in depends else min(fixed["heads"], 1)
    return rows, columns, fixed["q_len"], fixed["kv_len"]


def _schedule(mask: Mask, tiling: Tiling, exact: bool) -> Schedule:
    mixed, runs = Tiles(*np.zeros((4, 0), np.int64)), []
    for span, squares, rest in _walk(mask, tiling):
        runs.append(_runs(squares, span, tiling, FULL))
        mixed = rest
    if exact:
        some, every = _decide(mask, tiling, mixed)
        runs.append(_runs(mixed.some(every), 1, tiling, FULL))
        mixed = mixed.some(some & ~every)
    runs.append(_runs(mixed, 1, tiling, MIXED))
    rows, starts, lengths, states = _sorted(runs)
    # entry n of a run that begins at entry m of all is its start + n - m
    begins = np.cumsum(lengths) - lengths
    indices = np.arange(lengths.sum()) - np.repeat(begins - starts, lengths)
    per_row = np.zeros(tiling.batch * tiling.heads * tiling.q_tiles, np.int64)
    np.add.at(per_row, rows, lengths)
    indptr = np.concatenate([[0], np.cumsum(per_row)])
    full = np.repeat(states == FULL, lengths)
    return Schedule(**vars(tiling), indptr=indptr, indices=indices.astype(np.int32), full=full)


def _walk(mask: Mask, tiling: Tiling) -> Iterator[tuple[int, Tiles, Tiles]]:
    """(span, full squares, mixed squares) of span x span tiles, from the largest to single tiles; `full` are new."""
    if not tiling.q_tiles or not tiling.kv_tiles:
        return
    span = _FAN
    while span < max(tiling.q_tiles, tiling.kv_tiles):
        span *= _FAN
    b, h = np.divmod(np.arange(tiling.batch * tiling.heads), max(tiling.heads, 1))
    squares = Tiles(b, h, np.zeros_like(b), np.zeros_like(b))
    step = _PARTS // _FAN**2
    while span > 1:
        span //= _FAN
        parts = [squares.some(slice(start, start + step)) for start in range(0, len(squares.b), step)]
        divided = [_divide(mask, tiling, part, span) for part in parts]
        full, squares = _joined([f for f, _ in divided]), _joined([m for _, m in divided])
        yield span, full, squares


def _joined(lists: list[Tiles]) -> Tiles:
    nothing = Tiles(*np.zeros((4, 0), np.int64))
    return Tiles(*(np.concatenate(parts) for parts in zip(nothing, *lists, strict=True)))


def _divide(mask: Mask, tiling: Tiling, squares: Tiles, span: int) -> tuple[Tiles, Tiles]:
    """The full and the mixed ones among the parts, of span x span tiles, of larger squares."""
    b, h = squares.b[:, None, None], squares.h[:, None, None]
    q = squares.q[:, None, None] * _FAN + np.arange(_FAN)[:, None]
    k = squares.k[:, None, None] * _FAN + np.arange(_FAN)
    q_size, k_size = span * tiling.q_block, span * tiling.kv_block
    # a part beyond the lengths is asked about as if it were the last position, and dropped
    q_lo, q_hi = np.minimum(q * q_size, tiling.q_len - 1), np.minimum((q + 1) * q_size, tiling.q_len) - 1
    k_lo, k_hi = np.minimum(k * k_size, tiling.kv_len - 1), np.minimum((k + 1) * k_size, tiling.kv_len) - 1
    some, every = mask.tile(b, h, q_lo, q_hi, k_lo, k_hi)
    some = some & (q * q_size < tiling.q_len) & (k * k_size < tiling.kv_len)
    return _picked(squares, some & every), _picked(squares, some & ~every)


def _picked(squares: Tiles, chosen: Array) -> Tiles:
    at, i, j = np.nonzero(chosen)
    return Tiles(squares.b[at], squares.h[at], squares.q[at] * _FAN + i, squares.k[at] * _FAN + j)


def _runs(squares: Tiles, span: int, tiling: Tiling, state: int) -> tuple[Array, Array, Array, Array]:
    """(row, start, length, state) of the runs of key tiles that squares of span x span tiles have in their rows."""
    q = squares.q[:, None] * span + np.arange(span)
    start = squares.k[:, None] * span
    row = (squares.b * tiling.heads + squares.h)[:, None] * tiling.q_tiles + q
    inside = q < tiling.q_tiles
    length = np.minimum(span, tiling.kv_tiles - start)
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


def pairs(mask: Mask, tiling: Tiling, tiles: Tiles) -> Iterator[tuple[slice, Array, Array]]:
    """(which tiles, allowed, exists) a few tiles at a time, bool [tiles, q_block, kv_block]; allowed only if exists."""
    step = max(1, PAIRS // (tiling.q_block * tiling.kv_block))
    for start in range(0, len(tiles.b), step):
        part = slice(start, start + step)
        index, exists = inside(tiling, tiles.some(part))
        yield part, mask.allowed(*restrict(mask, *index)) & exists, exists


def inside(tiling: Tiling, tiles: Tiles) -> tuple[tuple[Array, Array, Array, Array], Array]:
    """(b, h, q, k) of the pairs of tiles, [tiles, q_block, kv_block] together, and which of them exist.

    Beyond the lengths the indices are those of the last position.
    """
    b, h, q, k = (x[:, None, None] for x in tiles)
    q = q * tiling.q_block + np.arange(tiling.q_block)[:, None]
    k = k * tiling.kv_block + np.arange(tiling.kv_block)
    last = np.minimum(q, tiling.q_len - 1), np.minimum(k, tiling.kv_len - 1)
    return (b, h, *last), (q < tiling.q_len) & (k < tiling.kv_len)


def _decide(mask: Mask, tiling: Tiling, tiles: Tiles) -> tuple[Array, Array]:
    """Whether some pair, and whether every pair, of each tile is allowed."""
    some, every = np.zeros((2, len(tiles.b)), bool)
    for part, allowed, exists in pairs(mask, tiling, tiles):
        some[part] = allowed.any((1, 2))
        every[part] = (allowed | ~exists).all((1, 2))
    return some, every
