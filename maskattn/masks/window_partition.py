from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._grid import check_windows, coordinates, spans
from maskattn.masks._lookup import clip


@dataclass(frozen=True)
class WindowPartition(Mask):
    """(y + window - shift) // window is equal for q and k on every axis. True = may attend.

    Swin's windows over the flat grid, nothing rolled or cut: position = y * W + x. The windows are those of
    `ShiftedWindow` (Swin's regions included) in another order: the ends of a shifted grid are windows of their own.
    `grid` is a tuple of 1 to 3 axes; `window` and `shift` are tuples or one int for all axes.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.WindowPartition((4,), window=2), 4, 4))
    ##--
    ##--
    --##
    --##
    >>> print(masks.draw(masks.WindowPartition((2, 4), window=(2, 2), shift=(0, 1)), 8, 8))
    #---#---
    -##--##-
    -##--##-
    ---#---#
    #---#---
    -##--##-
    -##--##-
    ---#---#

    Positions given per token make it rectangular: the first two tokens as queries,

    >>> m = masks.WindowPartition((4,), window=2, shift=1).with_positions([[0, 1]], [[0, 1, 2, 3]])
    >>> print(masks.draw(m, 2, 4))
    #---
    -##-

    Raises:
        ValueError: grid is not a multiple of window, or shift outside [0, window). TypeError: something is not an int.
    """

    grid: tuple[int, ...]
    window: Any
    shift: Any = 0

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "q and k lie in the same window of the shifted grid"

    def __post_init__(self) -> None:
        problems = Problems("WindowPartition")
        grid, window, shift = check_windows(problems, self.grid, self.window, self.shift)
        problems.raise_if_any()
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "shift", shift)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len or shape.q_len < 1:
            return []
        grid = factors(shape.q_len)
        window = tuple(n // cut if n % cut == 0 else n for n, cut in zip(grid, (2, 3), strict=True))
        return [cls(grid, window, tuple(draws.integer(0, n) for n in window))]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        size = math.prod(self.grid)
        result = (q >= 0) & (q < size) & (k >= 0) & (k < size)
        places = zip(coordinates(q, self.grid), coordinates(k, self.grid), strict=True)
        for (i, j), w, s in zip(places, self.window, self.shift, strict=True):
            result = result & ((i + w - s) // w == (j + w - s) // w)
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        size = math.prod(self.grid)
        some = (q_hi >= 0) & (q_lo < size) & (k_hi >= 0) & (k_lo < size)
        every = (q_lo >= 0) & (q_hi < size) & (k_lo >= 0) & (k_hi < size)
        q_lo, q_hi = clip(q_lo, 0, size - 1), clip(q_hi, 0, size - 1)
        k_lo, k_hi = clip(k_lo, 0, size - 1), clip(k_hi, 0, size - 1)
        ranges = zip(spans(q_lo, q_hi, self.grid), spans(k_lo, k_hi, self.grid), strict=True)
        for (i, j), w, s in zip(ranges, self.window, self.shift, strict=True):
            i_lo, i_hi = (i[0] + w - s) // w, (i[1] + w - s) // w
            j_lo, j_hi = (j[0] + w - s) // w, (j[1] + w - s) // w
            some = some & (i_lo <= j_hi) & (j_lo <= i_hi)
            every = every & (i_lo == i_hi) & (j_lo == j_hi) & (i_lo == j_lo)
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk")

    def sizes(self) -> dict[str, int]:
        size = math.prod(self.grid)
        return {"q_len": size, "kv_len": size}
