"""Figures about a mask: density, empty rows, and what a kernel that works tile by tile has to do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn._fields import to_numpy
from maskattn.masks import Mask
from maskattn.schedule.reach import known_rows
from maskattn.schedule.tiles import Schedule, Tiles, pairs


@dataclass(frozen=True)
class Statistics:
    """What `statistics` found. Counts are over the whole [batch, heads, q_len, kv_len].

    Attributes:
        sizes: of these four axes, by their names.
        tile: queries and keys of a tile.
        allowed: pairs that may attend; an estimate where not `exact`.
        exact: whether every pair was counted.
        empty_rows: rows that may attend to nothing.
        unknown_rows: rows of which it was not found out.
        skipped_tiles: tiles with nothing allowed by `Mask.tile`, which a kernel skips.
        full_tiles: tiles with everything allowed by `Mask.tile`, which a kernel runs without the mask.
        tiles: all there are.
    """

    sizes: dict[str, int]
    tile: tuple[int, int]
    allowed: int
    exact: bool
    empty_rows: int
    unknown_rows: int
    skipped_tiles: int
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
    shape = (sizes["batch"], sizes["heads"], sizes["q_len"], sizes["kv_len"])
    schedule = Schedule.of(mask, *shape, *tile)
    # rows of the batch and heads that are equal are looked at once
    copies = shape[0] * shape[1] // max(schedule.batch * schedule.heads, 1)
    mixed, room = schedule.tiles(~schedule.full), max(1, budget // (tile[0] * tile[1]))
    allowed, exact = _area(schedule, schedule.tiles(schedule.full)), len(mixed.b) <= room
    if exact:
        allowed += _allowed(mask, schedule, mixed)
    else:
        # drawn, not evenly spaced: patterns repeat
        chosen = mixed.some(np.sort(np.random.default_rng(0).permutation(len(mixed.b))[: max(1, room // 2)]))
        allowed += round(_allowed(mask, schedule, chosen) / _area(schedule, chosen) * _area(schedule, mixed))
    rows, unknown = known_rows(mask, *shape, budget=np.inf if exact else budget // 2)
    return Statistics(
        sizes=sizes,
        tile=tile,
        allowed=allowed * copies,
        exact=exact,
        empty_rows=int((~rows & ~unknown).sum()) * copies,
        unknown_rows=int(unknown.sum()) * copies,
        skipped_tiles=schedule.counts["empty"] * copies,
        full_tiles=schedule.counts["full"] * copies,
        tiles=sum(schedule.counts.values()) * copies,
    )


def _area(schedule: Schedule, tiles: Tiles) -> int:
    """The pairs that tiles hold."""
    height = np.minimum(schedule.q_block, schedule.q_len - tiles.q * schedule.q_block)
    return int(height @ np.minimum(schedule.kv_block, schedule.kv_len - tiles.k * schedule.kv_block))


def _allowed(mask: Mask, schedule: Schedule, tiles: Tiles) -> int:
    """The pairs that are allowed in tiles."""
    return sum(int(allowed.sum()) for _, allowed, _ in pairs(mask, schedule, tiles))
