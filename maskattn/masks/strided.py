from __future__ import annotations

from typing import ClassVar

from maskattn._arithmetic import maximum
from maskattn._declared import declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._relational import Relational


@declared
class Strided(Relational):
    """k <= q and (q - k) % stride == 0: itself and every stride-th key before. True = may attend.

    The strided head of the Sparse Transformer (Child et al. 2019), as its published code has it; the paper's pattern
    adds a window: `Strided(stride) | SlidingWindow(stride)`.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Strided(2), 5, 5))
    #----
    -#---
    #-#--
    -#-#-
    #-#-#
    >>> print(masks.draw(masks.Strided(3) | masks.SlidingWindow(1), 6, 7))
    #------
    ##-----
    -##----
    #-##---
    -#-##--
    --#-##-
    """

    stride: int = integer(minimum=1, meaning="positions from one key to the next")

    rule: ClassVar[str] = "k <= q and (q - k) % stride == 0"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return (k <= q) & ((q - k) % self.stride == 0)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        low, high = q_lo - k_hi, q_hi - k_lo  # q - k takes every value between them, so both answers are exact
        some = high // self.stride * self.stride >= maximum(low, 0)
        return some, (low >= 0) & ((self.stride == 1) | ((low == high) & (low % self.stride == 0)))

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.integer(2, 5))]
