from __future__ import annotations

import math
from typing import Any, ClassVar

from maskattn._arithmetic import negated
from maskattn._declared import declared, integers
from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn.masks._core import Mask
from maskattn.masks._grid import Span, WindowMask, coordinate


@declared
class ShiftedWindow(WindowMask):
    """Swin's mask inside windows: of one window, tokens that the roll brought together do not mix. True = may attend.

    The grid is rolled by -shift and cut into windows, which are the batch: row b is window b % n_windows (row-major),
    L = S = the tokens of a window. In the last window of an axis the last `shift` coordinates come from the other end
    of the grid; a token attends to those that lie, on every axis, at the same end (Liu et al. 2021, Swin Transformer,
    section 3.2). `dense` and the lowerings raise a ValueError where the batch is not a multiple of the windows.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.ShiftedWindow((2, 2), window=2, shift=1), 4, 4))
    #---
    -#--
    --#-
    ---#
    >>> print(masks.draw(masks.ShiftedWindow((2, 6), window=(2, 3), shift=(0, 1)), 6, 6, batch=1))
    ##-##-
    ##-##-
    --#--#
    ##-##-
    ##-##-
    --#--#
    """

    grid: tuple[int, ...] = integers(
        minimum=1, least=1, meaning="lengths of the axes; positions are row-major: y * W + x"
    )
    window: Any = integers(minimum=1, per="grid", meaning="lengths of a window")
    shift: Any = integers(per="grid", meaning="how far the grid is rolled back, less than window")

    rule: ClassVar[str] = "q and k come from the same end of the grid on every axis of window b % n_windows"

    @property
    def cells(self) -> tuple[int, ...]:
        return self.window

    @property
    def windows(self) -> tuple[int, ...]:
        """Windows along each axis."""
        return tuple(n // w for n, w in zip(self.grid, self.window, strict=True))

    @property
    def axes(self) -> list[int]:
        return [axis for axis, shift in enumerate(self.shift) if shift]

    def _wraps(self, axis: int, b: Array) -> Array:
        """Whether window b is the last of this axis, in which the roll brought both ends of the grid together."""
        return coordinate(b % math.prod(self.windows), self.windows, axis) == self.windows[axis] - 1

    def along(self, axis: int, b: Array, i: Array, j: Array) -> Array:
        cut = self.window[axis] - self.shift[axis]
        return negated(self._wraps(axis, b)) | ((i >= cut) == (j >= cut))

    def along_spans(self, axis: int, b: Array, i: Span, j: Span) -> tuple[Array, Array]:
        cut, wraps = self.window[axis] - self.shift[axis], self._wraps(axis, b)
        apart = ((i[1] < cut) & (j[0] >= cut)) | ((i[0] >= cut) & (j[1] < cut))
        together = ((i[1] < cut) & (j[1] < cut)) | ((i[0] >= cut) & (j[0] >= cut))
        return negated(wraps & apart), negated(wraps) | together

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("bqk")

    def sizes(self) -> dict[str, int]:
        return {"batch_multiple": math.prod(self.windows), **super().sizes()}

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len or shape.q_len < 2:
            return []
        window, count = factors(shape.q_len), shape.batch
        if min(window) > 1 and count % 4 == 0:
            shift = (draws.integer(1, window[0]), draws.integer(1, window[1]))
            return [cls((2 * window[0], 2 * window[1]), window, shift)]
        size = shape.q_len
        return [cls((count * size,), (size,), (draws.integer(1, size),))]
