"""Which rows may attend to something, and which keys something may attend to: by tiles, never as an L x S array."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from maskattn._pairs import restrict
from maskattn.masks import Mask
from maskattn.schedule.tiles import PAIRS, Schedule, Tiles, Tiling, inside, readable, settled
from maskattn.typing import NumPyArray as Array

__all__ = ["empty_rows", "known_rows", "reached"]


_Sizes = tuple[int | None, int | None, int, int]

#: the most queries and keys of a tile
_BLOCK = 128


def empty_rows(mask: Mask, batch: int | None, heads: int | None, q_len: int, kv_len: int, *, bias: Any = None) -> Array:
    """Which rows may attend to none of kv_len keys: bool [batch, heads, q_len], size 1 on axes that are not read.

    Args:
        mask: True = may attend. Its data must be readable now.
        bias: a Bias with its data in NumPy, whose -inf forbids as the mask does, or None.

    Raises:
        TypeError, ValueError: as `Schedule.of`.
    """
    return ~_search("empty_rows", mask, (batch, heads, q_len, kv_len), bias=bias)[0]


def reached(mask: Mask, batch: int | None, heads: int | None, q_len: int, kv_len: int) -> tuple[Array, Array]:
    """Which rows may attend to something, and which keys something may attend to.

    Returns:
        bool [batch, heads, q_len] and bool [batch, heads, kv_len], size 1 on axes that the mask does not read.

    Raises:
        TypeError, ValueError: as `Schedule.of`.
    """
    rows, keys, _ = _search("reached", mask, (batch, heads, q_len, kv_len), with_keys=True)
    return rows, keys


def known_rows(
    mask: Mask, batch: int | None, heads: int | None, q_len: int, kv_len: int, budget: float
) -> tuple[Array, Array]:
    """Which rows may attend to something, and of which it is not known after looking at `budget` pairs.

    Returns:
        bool [batch, heads, q_len] each, size 1 on axes that the mask does not read.

    Raises:
        TypeError, ValueError: as `Schedule.of`.
    """
    rows, _, unknown = _search("known_rows", mask, (batch, heads, q_len, kv_len), budget=budget)
    return rows, unknown


def _search(
    where: str, mask: Mask, sizes: _Sizes, bias: Any = None, with_keys: bool = False, budget: float = np.inf
) -> tuple[Array, Array, Array]:
    """The rows, and if asked the keys, of allowed pairs, and the rows of tiles that the budget left out."""
    mask = readable(where, mask)
    batch, heads, q_len, kv_len = settled(mask, sizes, frozenset() if bias is None else bias.depends)
    tiling = Tiling(*settled(mask, sizes), max(1, min(_BLOCK, q_len)), max(1, min(_BLOCK, kv_len)))
    rows = _flags(batch, heads, tiling.q_tiles, tiling.q_block, q_len)
    keys = _flags(batch, heads, tiling.kv_tiles, tiling.kv_block, kv_len)
    unknown = np.zeros_like(rows)
    full, tiles = _divided(mask, sizes, tiling)
    if bias is None:
        rows[full[:3]] = keys[full.b, full.h, full.k] = True
    else:
        tiles = Tiles(*map(np.concatenate, zip(full, tiles, strict=True)))
    # outward from the diagonal, where most masks have a pair for every row: other tiles then need no look
    tiles = tiles.some(np.argsort(np.abs(tiles.q * tiling.q_block - tiles.k * tiling.kv_block), kind="stable"))
    area = tiling.q_block * tiling.kv_block
    step = max(1, PAIRS // area)
    planes = np.ndindex(batch // max(tiling.batch, 1), heads // max(tiling.heads, 1))  # that the bias alone tells apart
    for (b, h), start in itertools.product(planes, range(0, len(tiles.b), 64 * step)):
        rest = tiles.some(slice(start, start + 64 * step))
        rest = rest._replace(b=rest.b + b, h=rest.h + h)
        while True:
            rest = rest.some(~rows[rest[:3]].all(-1) | with_keys & ~keys[rest.b, rest.h, rest.k].all(-1))
            part = rest.some(slice(int(min(step, budget / area))))
            if not len(part.b):
                break
            rest, budget = rest.some(slice(len(part.b), None)), budget - len(part.b) * area
            allowed = _allowed(mask, bias, tiling, part)
            np.logical_or.at(rows, part[:3], allowed.any(2))
            np.logical_or.at(keys, (part.b, part.h, part.k), allowed.any(1))
        unknown[rest[:3]] = True
    return _flat(rows, q_len), _flat(keys, kv_len), _flat(unknown & ~rows, q_len)


def _divided(mask: Mask, sizes: _Sizes, tiling: Tiling) -> tuple[Tiles, Tiles]:
    """The tiles that the mask's bounds call full, and those that they leave undecided."""
    if tiling.q_len * tiling.kv_len <= _entries(mask):  # bounds, which read all of the data, cost more than they save
        every = np.indices((tiling.batch, tiling.heads, tiling.q_tiles, tiling.kv_tiles))
        return Tiles(*np.zeros((4, 0), np.int64)), Tiles(*every.reshape(4, -1))
    schedule = Schedule.of(mask, *sizes, tiling.q_block, tiling.kv_block)
    return schedule.tiles(schedule.full), schedule.tiles(~schedule.full)


def _entries(mask: Mask) -> int:
    own = sum(getattr(mask, name).size for name in mask.data_fields())
    return own + sum(map(_entries, mask.children()))


def _flags(batch: int, heads: int, tiles: int, block: int, length: int) -> Array:
    """False for each query, or key, of each tile: bool [batch, heads, tiles, block]; True beyond the length."""
    beyond = np.arange(tiles * block).reshape(tiles, block) >= length
    return np.broadcast_to(beyond, (batch, heads, tiles, block)).copy()


def _flat(flags: Array, length: int) -> Array:
    batch, heads, tiles, block = flags.shape
    return flags.reshape(batch, heads, tiles * block)[..., :length]


def _allowed(mask: Mask, bias: Any, tiling: Tiling, tiles: Tiles) -> Array:
    index, exists = inside(tiling, tiles)
    allowed = mask.allowed(*restrict(mask, *index)) & exists
    return allowed if bias is None else allowed & (bias.values(*restrict(bias, *index)) != -np.inf)
