from __future__ import annotations

from typing import ClassVar

from maskattn._arithmetic import maximum, minimum
from maskattn._declared import declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._relational import Relational

_FAR = 1 << 30  # no two positions are further apart; beyond it int32 would overflow


@declared
class Dilated(Relational):
    """abs(k - q) <= window * dilation and (k - q) % dilation == 0. True = may attend.

    A window with gaps, the query's own position included: Longformer's dilated sliding window (Beltagy et al. 2020,
    section 3.1). With dilation 1 it is SlidingWindow(window, window).

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Dilated(1, 2), 5, 5))
    #-#--
    -#-#-
    #-#-#
    -#-#-
    --#-#
    >>> print(masks.draw(masks.Dilated(2, 3), 3, 8))
    #--#--#-
    -#--#--#
    --#--#--
    """

    window: int = integer(minimum=0, meaning="keys on each side of the query")
    dilation: int = integer(minimum=1, meaning="positions from one key to the next")

    rule: ClassVar[str] = "abs(k - q) <= window * dilation and (k - q) % dilation == 0"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        reach = min(self.window * self.dilation, _FAR)
        return (k - q <= reach) & (q - k <= reach) & ((k - q) % self.dilation == 0)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        reach, step = min(self.window * self.dilation, _FAR // self.dilation * self.dilation), self.dilation
        low, high = k_lo - q_hi, k_hi - q_lo  # k - q takes every value between them, so both answers are exact
        inside = (low >= -reach) & (high <= reach)
        last = minimum(high, reach) // step * step  # the largest multiple that is not beyond
        return last >= maximum(low, -reach), inside & ((step == 1) | ((low == high) & (low % step == 0)))

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.integer(1, 4), draws.integer(2, 4))]
