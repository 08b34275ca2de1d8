from __future__ import annotations

from typing import Any, ClassVar

from maskattn._declared import declared, integers
from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._grid import Span, WindowMask, equal


@declared
class WindowPartition(WindowMask):
    """(y + window - shift) // window is equal for q and k on every axis. True = may attend.

    Swin's windows over the flat grid, nothing rolled or cut (Liu et al. 2021, Swin Transformer, section 3.2). The
    windows are those of `ShiftedWindow` (Swin's regions included) in another order: the ends of a shifted grid are
    windows of their own.

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
    """

    grid: tuple[int, ...] = integers(
        minimum=1, least=1, meaning="lengths of the axes; positions are row-major: y * W + x"
    )
    window: Any = integers(minimum=1, per="grid", meaning="lengths of a window")
    shift: Any = integers(per="grid", default=0, meaning="how far the grid is rolled back, less than window")

    rule: ClassVar[str] = "q and k lie in the same window of the shifted grid"

    def _window(self, axis: int, i: Array) -> Array:
        """The number of the window that coordinate i lies in."""
        return (i + self.window[axis] - self.shift[axis]) // self.window[axis]

    def along(self, axis: int, b: Array, i: Array, j: Array) -> Array:
        return self._window(axis, i) == self._window(axis, j)

    def along_spans(self, axis: int, b: Array, i: Span, j: Span) -> tuple[Array, Array]:
        i_windows, j_windows = ((self._window(axis, low), self._window(axis, high)) for low, high in (i, j))
        return equal(i_windows, j_windows)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len or shape.q_len < 1:
            return []
        grid = factors(shape.q_len)
        window = tuple(n // cut if n % cut == 0 else n for n, cut in zip(grid, (2, 3), strict=True))
        return [cls(grid, window, tuple(draws.integer(0, n) for n in window))]
