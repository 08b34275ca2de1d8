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
class ShiftedWindow(Mask):
    """Swin's mask inside windows: of one window, tokens that the roll brought together do not mix. True = may attend.

    The grid is rolled by -shift and cut into windows, which are the batch: row b is window b % n_windows (row-major),
    L = S = the tokens of a window. In the last window of an axis the last `shift` coordinates come from the other end
    of the grid; a token attends to those that lie, on every axis, at the same end (Liu et al. 2021, Swin Transformer,
    section 3.2). `grid` is a tuple of 1 to 3 axes; `window` and `shift` are tuples or one int for all axes.

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

    Raises:
        ValueError: grid is not a multiple of window, or shift outside [0, window). TypeError: something is not an int.
        `dense` and the lowerings raise a ValueError where the batch is not a multiple of the number of windows.
    """

    grid: tuple[int, ...]
    window: Any
    shift: Any

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "q and k come from the same end of the grid on every axis of window b % n_windows"

    def __post_init__(self) -> None:
        problems = Problems("ShiftedWindow")
        grid, window, shift = check_windows(problems, self.grid, self.window, self.shift)
        problems.raise_if_any()
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "shift", shift)

    @property
    def windows(self) -> tuple[int, ...]:
        """Windows along each axis."""
        return tuple(n // w for n, w in zip(self.grid, self.window, strict=True))

    def _wraps(self, b: Array) -> list[Array]:
        """Per axis, whether window b is the last, in which the roll brought both ends of the grid together."""
        places = coordinates(b % math.prod(self.windows), self.windows)
        return [place == n - 1 for place, n in zip(places, self.windows, strict=True)]

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

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        size = math.prod(self.window)
        result = (q >= 0) & (q < size) & (k >= 0) & (k < size)
        places = zip(coordinates(q, self.window), coordinates(k, self.window), strict=True)
        for wraps, (i, j), w, s in zip(self._wraps(b), places, self.window, self.shift, strict=True):
            if s:
                result = result & ((wraps ^ True) | ((i >= w - s) == (j >= w - s)))
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        size = math.prod(self.window)
        some = (q_hi >= 0) & (q_lo < size) & (k_hi >= 0) & (k_lo < size)
        every = (q_lo >= 0) & (q_hi < size) & (k_lo >= 0) & (k_hi < size)
        q_lo, q_hi = clip(q_lo, 0, size - 1), clip(q_hi, 0, size - 1)
        k_lo, k_hi = clip(k_lo, 0, size - 1), clip(k_hi, 0, size - 1)
        ranges = zip(spans(q_lo, q_hi, self.window), spans(k_lo, k_hi, self.window), strict=True)
        for wraps, (i, j), w, s in zip(self._wraps(b), ranges, self.window, self.shift, strict=True):
            if s:
                cut = w - s
                apart = ((i[1] < cut) & (j[0] >= cut)) | ((i[0] >= cut) & (j[1] < cut))
                together = ((i[1] < cut) & (j[1] < cut)) | ((i[0] >= cut) & (j[0] >= cut))
                some, every = some & ((wraps & apart) ^ True), every & ((wraps ^ True) | together)
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("bqk")

    def sizes(self) -> dict[str, int]:
        size = math.prod(self.window)
        return {"batch_multiple": math.prod(self.windows), "q_len": size, "kv_len": size}
