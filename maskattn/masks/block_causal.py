from __future__ import annotations

from typing import ClassVar

from maskattn._declared import declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._relational import Relational
from maskattn.masks.rows import Rows


@declared
class BlockCausal(Relational):
    """k // size <= q // size: causal from block to block, everything inside a block. True = may attend.

    Autoregression over blocks: video and image tokens frame by frame, the clean half of block diffusion (BD3-LM).

    >>> from maskattn import masks
    >>> print(masks.draw(masks.BlockCausal(2), 4, 4))
    ##--
    ##--
    ####
    ####
    >>> print(masks.draw(masks.BlockCausal(2), 3, 7))
    ##-----
    ##-----
    ####---
    """

    size: int = integer(minimum=1, meaning="positions in each block")

    rule: ClassVar[str] = "k // size <= q // size"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return k // self.size <= q // self.size

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        return Rows(None, (q // self.size + 1) * self.size)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return k_lo // self.size <= q_hi // self.size, k_hi // self.size <= q_lo // self.size

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.integer(2, 5))]
