from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maskattn._arithmetic import never, zero
from maskattn._declared import data, declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import gather
from maskattn._problems import Problems
from maskattn.arrays import constant
from maskattn.masks._core import Mask
from maskattn.masks._relational import Relational
from maskattn.numerics import rng

if TYPE_CHECKING:
    from jaxtyping import Int

_MOST = 1 << 24  # blocks drawn for one mask: a size that came from a file must not take all memory


@declared
class RandomBlocks(Relational):
    """k // block_size is one of the blocks drawn for q // block_size. True = may attend.

    BigBird's random attention (Zaheer et al. 2020), with SlidingWindow and Global, in self-attention: there are as many
    blocks of queries as of keys, and they cover the lengths, else `dense` and the lowerings raise a ValueError.

    The choice is a function of the arguments alone, the same in every framework: it is drawn when the mask is built,
    with Floyd's algorithm. For query block i, words = rng.bits(rng.fold_in(rng.key(seed), i), (blocks_per_row,)); for n
    from kv_blocks - blocks_per_row to kv_blocks - 1, the next word modulo n + 1 is taken, or n itself where that was
    taken before.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.RandomBlocks(0, block_size=1, blocks_per_row=2, kv_blocks=5), 5, 5))
    -#-#-
    -##--
    -#--#
    --#-#
    #---#
    >>> print(masks.draw(masks.RandomBlocks(7, 2, 1, 4), 4, 7))
    --##---
    --##---
    ------#
    ------#
    """

    seed: int = integer(minimum=0, below=2**31, consumed=True, meaning="decides the choice")
    block_size: int = integer(minimum=1, meaning="queries, and keys, of a block")
    blocks_per_row: int = integer(minimum=0, meaning="blocks of keys that each block of queries sees")
    kv_blocks: int = integer(minimum=1, meaning="blocks that there are")
    blocks: Int[Array, "kv_blocks blocks_per_row"] = data(
        init=False, meaning="the choice, int [kv_blocks, blocks_per_row], in increasing order"
    )

    rule: ClassVar[str] = "the block of k is one of those drawn for the block of q"

    def _check(self, problems: Problems) -> None:
        """blocks_per_row exceeds kv_blocks, or their product 2**24"""
        count, kv_blocks = self.blocks_per_row, self.kv_blocks
        if count > kv_blocks:
            problems.value(f"blocks_per_row must be at most kv_blocks {kv_blocks}, got {count}")
        elif kv_blocks * count > _MOST:
            problems.value(f"kv_blocks * blocks_per_row must be at most {_MOST}, got {kv_blocks * count}")
        else:
            self._set(blocks=_draw(self.seed, count, kv_blocks))

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        row, column = q // self.block_size, k // self.block_size
        result = never(row, column)
        for place in range(self.blocks_per_row):
            block, inside = gather(self.blocks, row, place, stretch=())
            result = result | ((block == column) & inside)
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        first, last = q_lo // self.block_size, q_hi // self.block_size
        k_lo, k_hi = k_lo // self.block_size, k_hi // self.block_size
        counts: list[Array] = []
        for row in (first, last):
            total = zero(row)
            for place in range(self.blocks_per_row):
                block, inside = gather(self.blocks, row, place, stretch=())
                total = total + ((block >= k_lo) & (block <= k_hi) & inside)
            counts.append(total)
        # a tile of two rows of blocks or fewer is read exactly; of more, those between count as mixed
        between = (last - first > 1) & (k_hi >= 0) & (k_lo < self.kv_blocks)
        width = k_hi - k_lo + 1
        full = (counts[0] == width) & (counts[1] == width) & (last - first <= 1)
        return (counts[0] > 0) | (counts[1] > 0) | between, full

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        faults = []
        q_len, kv_len = sizes["q_len"], sizes["kv_len"]
        if kv_len is not None and -(-kv_len // self.block_size) != self.kv_blocks:
            faults.append(f"{self!r} expects kv_len of {self.kv_blocks} blocks of {self.block_size}, got {kv_len}")
        if isinstance(q_len, int) and q_len > self.kv_blocks * self.block_size:
            faults.append(f"{self!r} expects q_len up to {self.kv_blocks * self.block_size}, got {q_len}")
        return faults

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        block_size = draws.integer(1, 4)
        kv_blocks = -(-shape.kv_len // block_size)
        if not 0 < kv_blocks >= -(-shape.q_len // block_size):
            return []
        return [cls(draws.integer(0, 1000), block_size, draws.integer(1, min(4, kv_blocks + 1)), kv_blocks)]


@constant
def _draw(seed: int, count: int, kv_blocks: int) -> np.ndarray:
    """`count` distinct numbers below kv_blocks for each of kv_blocks rows: int64 [kv_blocks, count], rows sorted."""
    blocks = np.empty((kv_blocks, count), np.int64)
    keys = rng.fold_in(rng.key(seed), np.arange(kv_blocks))
    words = rng.bits_each(keys, count).astype(np.int64)
    for place, most in enumerate(range(kv_blocks - count, kv_blocks)):
        candidate = words[:, place] % (most + 1)
        taken = (blocks[:, :place] == candidate[:, None]).any(axis=1)
        blocks[:, place] = np.where(taken, most, candidate)
    return np.sort(blocks, axis=1)
