from __future__ import annotations

from typing import ClassVar

from maskattn._declared import declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._grid import equal
from maskattn.masks._relational import Relational
from maskattn.masks.rows import Rows


@declared
class Chunked(Relational):
    """q // size == k // size: a query sees its own chunk only. True = may attend.

    Llama 4's local layers (with Causal), block-local attention.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Chunked(2), 4, 4))
    ##--
    ##--
    --##
    --##
    >>> print(masks.draw(masks.Chunked(3) & masks.Causal(), 5, 7))
    #------
    ##-----
    ###----
    ---#---
    ---##--
    """

    size: int = integer(minimum=1, meaning="positions in each chunk")

    rule: ClassVar[str] = "q // size == k // size"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return q // self.size == k // self.size

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        first = q // self.size * self.size
        return Rows(first, first + self.size)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return equal((q_lo // self.size, q_hi // self.size), (k_lo // self.size, k_hi // self.size))

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.integer(2, 6))]
