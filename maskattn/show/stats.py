"""Figures about a mask: density, empty rows, and what a kernel that works tile by tile has to do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn._fields import to_numpy
from maskattn._pairs import restrict
from maskattn.masks import Mask

Array = np.ndarray
_CALL = 1 << 20  # pairs, or tiles, in one call of a mask: bounds the memory


@dataclass(frozen=True)
class Statistics:
    """What `statistics` found. Counts are over the whole [batch, heads, q_len, kv_len]."""

    sizes: dict[str, int]
    tile: tuple[int, int]
    #: pairs that may attend; an estimate where not `exact`
    allowed: int
    exact: bool
    #: rows that may attend to nothing
    empty_rows: int
    #: rows of which it was not found out
    unknown_rows: int
    #: tiles with nothing allowed by `Mask.tile`, which a kernel skips
    skipped_tiles: int
    #: tiles with everything allowed by `Mask.tile`, which a kernel runs without the mask
    full_tiles: int
    tiles: int

    @property
    def rows(self) -> int:
        """Rows of the score matrix."""
        return self.sizes["batch"] * self.sizes["heads"] * self.sizes["q_len"]

    @property
    def pairs(self) -> int:
        """Entries of the score matrix."""
        return self.rows * self.sizes["kv_len"]

    @property
    def density(self) -> float:
        """The share of pairs allowed; nan where there are none."""
        return self.allowed / self.pairs if self.pairs else float("nan")


def statistics(
    mask: Mask,
    q_len: int,
    kv_len: int,
    batch: int | None = None,
    heads: int | None = None,
    tile: tuple[int, int] = (128, 128),
    budget: int = 1 << 29,
) -> Statistics:
    """Count what a mask allows, without building [batch, heads, q_len, kv_len].

    `Mask.tile` decides whole tiles; pairs are looked at in the mixed tiles only. Where these hold more than `budget`
    pairs, the density is estimated from tiles drawn at random, always the same.

    Args:
        mask: True = may attend.
        tile: queries and keys of a tile.

    Raises:
        ValueError: a size conflicts with the data, or a tile has no entries.
    """
    if min(tile) < 1:
        raise ValueError(f"statistics: tile must be at least 1 x 1, got {tile[0]} x {tile[1]}")
    mask = mask.map_data(to_numpy)
    sizes = mask.settle(q_len, kv_len, batch, heads)
    return _Count(mask, sizes, tile, budget).result()


class _Count:
    """The tiles of [batch, heads, q_len, kv_len] in lines: line r holds the tiles of one row of tiles of one head."""

    def __init__(self, mask: Mask, sizes: dict[str, int], tile: tuple[int, int], budget: int) -> None:
        self.mask, self.sizes, self.tile, self.budget = mask, sizes, tile, budget
        # rows of the batch and heads that are equal are looked at once
        self.batch = sizes["batch"] if "b" in mask.depends else min(sizes["batch"], 1)
        self.heads = sizes["heads"] if "h" in mask.depends else min(sizes["heads"], 1)
        self.copies = sizes["batch"] * sizes["heads"] // max(self.batch * self.heads, 1)
        self.down, self.across = -(-sizes["q_len"] // tile[0]), -(-sizes["kv_len"] // tile[1])
        self.lines = self.batch * self.heads * self.down

    def place(self, line: Array) -> tuple[Array, Array, Array]:
        """(b, h, first query) of lines of tiles."""
        where = line // self.down
        return where // self.heads, where % self.heads, line % self.down * self.tile[0]

    def bounds(self) -> tuple[Array, Array]:
        """(some, every) of each tile: bool [lines, across]."""
        some, every = (np.zeros((self.lines, self.across), bool) for _ in range(2))
        k = np.arange(self.across) * self.tile[1]
        k_last = np.minimum(k + self.tile[1], self.sizes["kv_len"]) - 1
        step = max(1, _CALL // max(self.across, 1))
        for start in range(0, self.lines if self.across else 0, step):
            lines = np.arange(start, min(start + step, self.lines))
            b, h, q = (index[:, None] for index in self.place(lines))
            q_last = np.minimum(q + self.tile[0], self.sizes["q_len"]) - 1
            part_some, part_every = self.mask.tile(b, h, q, q_last, k, k_last)
            some[lines], every[lines] = part_some, part_every
        return some, every

    def look(self, lines: Array, columns: Array, found: Array) -> int:
        """Pairs allowed in the tiles given; rows with any are noted in `found` [lines, queries]."""
        total = 0
        step = max(1, _CALL // (self.tile[0] * self.tile[1]))
        for start in range(0, len(lines), step):
            line = lines[start : start + step]
            b, h, first = (index[:, None, None] for index in self.place(line))
            q = first + np.arange(self.tile[0])[:, None]
            k = columns[start : start + step, None, None] * self.tile[1] + np.arange(self.tile[1])
            inside = (q < self.sizes["q_len"]) & (k < self.sizes["kv_len"])
            allowed = self.mask.allowed(*restrict(self.mask, b, h, q, k)) & inside
            total += int(allowed.sum())
            at, query = np.nonzero(allowed.any(axis=2))
            found[line[at], query] = True
        return total

    def result(self) -> Statistics:
        some, every = self.bounds()
        found = np.zeros((self.lines, self.tile[0]), bool)
        found[every.any(axis=1)] = True
        height = np.minimum(self.tile[0], self.sizes["q_len"] - self.place(np.arange(self.lines))[2])
        width = np.minimum(self.tile[1], self.sizes["kv_len"] - np.arange(self.across) * self.tile[1])
        allowed = int(height @ (every @ width)) if self.lines and self.across else 0
        lines, columns = np.nonzero(some & ~every)
        room = max(1, self.budget // (self.tile[0] * self.tile[1]))
        exact, settled = len(lines) <= room, np.ones(self.lines, bool)
        if exact:
            allowed += self.look(lines, columns, found)
        else:
            # drawn, not evenly spaced: patterns repeat
            chosen = np.sort(np.random.default_rng(0).permutation(len(lines))[: max(1, room // 2)])
            share = self.look(lines[chosen], columns[chosen], found) / (height[lines[chosen]] @ width[columns[chosen]])
            allowed += round(share * int(height[lines] @ width[columns]))
            settled = self.rows(lines, columns, found, room - room // 2)
        real = np.arange(self.tile[0]) < height[:, None]
        missing = real & ~found
        return Statistics(
            sizes=self.sizes,
            tile=self.tile,
            allowed=allowed * self.copies,
            exact=exact,
            empty_rows=int(missing[settled].sum()) * self.copies,
            unknown_rows=int(missing[~settled].sum()) * self.copies,
            skipped_tiles=int((~some).sum()) * self.copies,
            full_tiles=int(every.sum()) * self.copies,
            tiles=some.size * self.copies,
        )

    def rows(self, lines: Array, columns: Array, found: Array, room: int) -> Array:
        """Look for rows that attend to something, line by line outward from the diagonal; which lines are settled."""
        real = np.arange(self.tile[0]) < (self.sizes["q_len"] - self.place(np.arange(self.lines))[2])[:, None]
        distance = np.abs(columns * self.tile[1] - lines % self.down * self.tile[0])
        order = np.lexsort((distance, lines))
        lines, columns = lines[order], columns[order]
        starts = np.searchsorted(lines, np.arange(self.lines + 1))
        rank, counts = 0, np.diff(starts)
        while True:
            open_ = np.flatnonzero((real & ~found).any(axis=1) & (counts > rank))
            if not len(open_) or room < len(open_):
                break
            self.look(open_, columns[starts[open_] + rank], found)
            room -= len(open_)
            rank += 1
        return (counts <= rank) | ~(real & ~found).any(axis=1)
