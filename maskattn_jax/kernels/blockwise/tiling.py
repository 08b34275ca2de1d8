"""How a call is divided into tiles: their sizes, and which of them are computed together."""

from __future__ import annotations

from dataclasses import dataclass

from jax import Array

from maskattn.masks import Mask
from maskattn.schedule.tiles import Tiling

#: A call of at most so many queries (decoding) has wider tiles of keys: a step then costs more than its scores.
FEW = 32
#: A tile of queries has at most so many rows (what the steps cost decides, where it can be known), one of keys so many
#: columns.
_Q_BLOCKS, _KV_BLOCK, _KV_BLOCK_FEW = (512, 256), 256, 512
#: Where sequences are short a tile takes several batch rows and heads, up to so many scores.
_SCORES = 1 << 16
#: How many tiles that share their steps the forward pass computes side by side: XLA runs operations at once that do not
#: depend on each other. (The backward pass has enough of them in one tile.)
_PARTS = 4


@dataclass(frozen=True)
class CallTiling(Tiling):
    """The sizes of a call (of a device's part of it) and of its tiles: batch and heads are those of its queries.

                      keys: kv_tiles of kv_block each
        queries     +---------+---------+---------+----
        q_block     |  tile   |  tile   |  tile   |          a row of tiles: its queries attend to one
                    +---------+---------+---------+----      step after the other, of adjacent tiles
        q_block     |         |         |         |

    A tile has these queries and keys of `rows` batch rows and `columns` key/value heads, the `group` query heads of
    each stacked. `parts` tiles along the batch and along the heads, whose steps are the same, are computed side by
    side.

    Attributes:
        whole: (B, H, L, S) on all devices.
        by_head: the mask gives heads steps of their own: they are then not stacked, and `columns` is 1.
    """

    kv_heads: int
    rows: int
    columns: int
    parts: tuple[int, int]
    whole: tuple[int, int, int, int]
    by_head: bool

    @property
    def group(self) -> int:
        """How many query heads of one key/value head are stacked in a tile."""
        return 1 if self.by_head else self.heads // self.kv_heads

    @property
    def tile(self) -> tuple[int, int, int, int]:
        """The shape of a tile without its keys: [rows, columns, group, q_block]."""
        return self.rows, self.columns, self.group, self.q_block

    @property
    def flat(self) -> tuple[int, int, int]:
        """The same with the queries of a group one after the other: [rows, columns, group * q_block]."""
        return self.rows, self.columns, self.group * self.q_block

    @property
    def groups(self) -> tuple[int, int]:
        """How many groups of parts there are along the batch and along the heads."""
        return self.batch // (self.rows * self.parts[0]), self.heads // (self.group * self.columns * self.parts[1])

    @property
    def shards(self) -> int:
        """Into how many devices' parts the queries are divided."""
        return max(1, self.whole[2] // max(1, self.q_len))

    @property
    def divided(self) -> tuple[bool, bool, bool]:
        """Whether several devices have parts of the batch, of the heads, of the queries."""
        return self.batch != self.whole[0], self.heads != self.whole[1], self.shards > 1

    @property
    def padded(self) -> tuple[int, int]:
        """The lengths rounded up to whole tiles: queries, keys."""
        return self.q_tiles * self.q_block, self.kv_tiles * self.kv_block


def block_sizes(q_len: int, kv_len: int, several: bool) -> list[tuple[int, int]]:
    """The sizes of tiles, queries by keys, that are worth a try; only the first, if not `several`."""
    kv_block = _even(kv_len, _KV_BLOCK_FEW if q_len <= FEW else _KV_BLOCK)
    q_blocks = {_even(q_len, most) for most in _Q_BLOCKS[: None if several else 1]}
    return [(q_block, kv_block) for q_block in sorted(q_blocks, reverse=True)]


def divide(
    mask: Mask | None, query: Array, key: Array, whole: tuple[int, int, int, int], blocks: tuple[int, int]
) -> CallTiling:
    """How these arrays are divided into tiles of `blocks` queries by keys. `whole`: (B, H, L, S) on all devices."""
    (batch, q_len, heads, _), (_, kv_len, kv_heads, _) = query.shape, key.shape
    q_block, kv_block = blocks
    # tiles whose masks differ cannot share their steps; where there is one tile for each, they all take it
    several = q_len > q_block or kv_len > kv_block
    by_head, by_row = (several and mask is not None and axis in mask.depends for axis in "hb")
    group = 1 if by_head else heads // max(kv_heads, 1)
    room = max(1, _SCORES // (group * q_block * kv_block))
    columns = 1 if by_head else _divisor(kv_heads, room)
    rows = 1 if by_row or columns < kv_heads else _divisor(batch, room // columns)
    across = 1 if by_head else _divisor(kv_heads // columns, _PARTS)
    down = 1 if by_row else _divisor(batch // rows, _PARTS // across)
    parts = (down, across)
    return CallTiling(batch, heads, q_len, kv_len, q_block, kv_block, kv_heads, rows, columns, parts, whole, by_head)


def _even(length: int, most: int) -> int:
    """The size of the tiles into which a length divides most evenly, none above `most`; a multiple of 8 if several."""
    count = max(1, -(-length // most))
    return max(1, length) if count == 1 else -(-length // (8 * count)) * 8


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`."""
    return max((d for d in range(1, max(count, 1) + 1) if count % d == 0 and d <= most), default=1)
