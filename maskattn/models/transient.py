"""LongT5's transient global attention: to tokens nearby, and to sums of blocks (Guo et al. 2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from maskattn.biases import T5Buckets
from maskattn.layer import T5Table
from maskattn.masks import Full, Stored
from maskattn.models.attention import Attention, Given, Separate
from maskattn.models.leaves import Norm
from maskattn.models.part import B, Run
from maskattn.modules import attend_heads
from maskattn.typing import Traced

#: The canonical name of the table of distances in blocks.
GLOBAL_TABLE = "global_relative_attention_bias.table"


@dataclass(frozen=True)
class TransientGlobal(Attention):
    """Attention of which some keys and values are those of blocks, their sums normed.

    Attributes:
        norm: of the sums. size: tokens of a block; those behind the last whole one belong to that.
    """

    inexact: ClassVar[str] = "sums of blocks of tokens have no exact form"

    norm: Norm | None = None
    size: int = 16

    def apply(self, at: object, x: B, run: Run[B], given: Given[B], cache: Traced = None) -> tuple[B, Traced]:
        """x [B, L, E] -> [B, L, E]; there is no cache."""
        inputs, use = self.inputs, run.use
        assert isinstance(inputs, Separate) and cache is None
        query, key, value = inputs.apply(self.config, at, x, x, run)
        asked = self.asked(x, run, given, given.masks.get(self.mask, self.mask), lse=True)
        near = attend_heads(self.layer(at, run, given), (query, key, value), asked)
        count = x.shape[1] // self.size
        if not count:
            return self.ended(at, near.output, run), None
        blocks, here = self.blocks(x, given.keep, run)
        sums = run.norm(self.norm, at, use.sums(x, blocks, count))
        three = query, run.linear(inputs.key, at, sums), run.linear(inputs.value, at, sums)
        asked = self.asked(x, run, given, Stored(Full(), blocks, here), lse=True)
        asked = replace(asked, bias=self.bias(blocks, count, run, given))
        layer = replace(self.layer(at, run, given), config=self.config.replace(position_bias=None))
        far = attend_heads(layer, three, asked)
        assert near.lse is not None and far.lse is not None
        return self.ended(at, use.merge(near.output, near.lse, far.output, far.lse), run), None

    def bias(self, blocks: B, count: int, run: Run[B], given: Given[B]) -> B:
        """What distances in blocks add, [B, H, L, count]."""
        part, use = self.config.position_bias, run.use
        assert isinstance(part, T5Table)
        buckets = T5Buckets(np.zeros((part.rows, 1), np.float32), part.max_distance, part.bidirectional)
        ids: Traced = blocks
        found: Traced = use.rows(given.shared[GLOBAL_TABLE], buckets.rows(0, ids[..., None], use.arange(count, ids)))
        return found.swapaxes(2, 3).swapaxes(1, 2)

    def blocks(self, x: B, keep: Traced, run: Run[B]) -> tuple[B, B]:
        """The block of each token of x, int [B, L], -1 of padding; and of each sum its own, int [1 or B, count], -1
        where there is none: there are as many as blocks that end with a token."""
        use, size = run.use, self.size
        count = x.shape[1] // size
        tokens: Traced = use.arange(x.shape[1], x)[None]
        places: Traced = use.arange(count, x)[None]
        whole: Traced = count if keep is None else keep[:, size - 1 :: size].sum(1)[:, None]
        last: Traced = tokens * 0 + whole - 1
        ids: Traced = use.where(tokens // size < last, tokens // size, last)
        if keep is not None:
            return use.where(keep, ids, ids * 0 - 1), use.where(places < whole, places, places * 0 - 1)
        return use.broadcast(ids, x.shape[:2]), places
