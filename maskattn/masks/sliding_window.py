from __future__ import annotations

from typing import ClassVar

from maskattn._declared import declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._relational import Relational
from maskattn.masks.rows import Rows


@declared
class SlidingWindow(Relational):
    """-left <= k - q <= right: `left` keys before the query, itself, and `right` after. True = may attend.

    That is left + right + 1 keys, as in FlashAttention and jax.nn; where a library counts W keys with the query's own
    (Hugging Face's Mistral), left is W - 1. Local attention of Longformer (left = right) and Mistral (right = 0).

    >>> from maskattn import masks
    >>> print(masks.draw(masks.SlidingWindow(1), 4, 4))
    #---
    ##--
    -##-
    --##
    >>> print(masks.draw(masks.SlidingWindow(1, 2), 3, 6))
    ###---
    ####--
    -####-
    >>> print(masks.draw(masks.SlidingWindow(None, 1), 3, 6))
    ##----
    ###---
    ####--
    """

    left: int | None = integer(minimum=0, none="unbounded", meaning="keys before the query")
    right: int | None = integer(minimum=0, none="unbounded", default=0, meaning="keys after the query")

    rule: ClassVar[str] = "-left <= k - q <= right"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        result: Array = True
        if self.left is not None:
            result = result & (k >= q - self.left)
        if self.right is not None:
            result = result & (k <= q + self.right)
        return result

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        low = None if self.left is None else q - self.left
        return Rows(low, None if self.right is None else q + self.right + 1)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        # k - q takes every value from k_lo - q_hi to k_hi - q_lo, so both bounds are exact
        some: Array = True
        every: Array = True
        if self.left is not None:
            some, every = some & (k_hi >= q_lo - self.left), every & (k_lo >= q_hi - self.left)
        if self.right is not None:
            some, every = some & (k_lo <= q_hi + self.right), every & (k_hi <= q_lo + self.right)
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset() if self.left is None and self.right is None else frozenset("qk")

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [
            cls(draws.integer(0, 4), draws.integer(0, 4)),
            cls(None, draws.integer(0, 3)),
            cls(draws.integer(1, 5), 0),
        ]
