from __future__ import annotations

from typing import Any, ClassVar

from maskattn._arithmetic import clip, maximum, minimum
from maskattn._declared import declared, integers
from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._grid import GridMask, Span


@declared
class Neighborhood(GridMask):
    """On every axis k is one of the `kernel` keys nearest to q, moved inwards at the borders. True = may attend.

    NATTEN's rule (Hassani et al. 2023, Neighborhood Attention Transformer; Hassani and Shi 2022 for the dilation): on
    an axis of length n, i the coordinate of q and k that of the key, the coordinates congruent modulo dilation form a
    group; with g = i % dilation, j = i // dilation and n_g = ceil((n - g) / dilation), the keys of q are
    k % dilation == g and start <= k // dilation < start + kernel, start = clip(j - kernel // 2, 0, n_g - kernel).
    Every query sees exactly `kernel` keys per axis, at the borders too.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Neighborhood((6,), kernel=3), 6, 6))
    ###---
    ###---
    -###--
    --###-
    ---###
    ---###
    >>> print(masks.draw(masks.Neighborhood((2, 4), kernel=(1, 2), dilation=(1, 2)).at(q_offset=4), 4, 8))
    ----#-#-
    -----#-#
    ----#-#-
    -----#-#
    """

    grid: Any = integers(
        minimum=1, least=1, most=3, alone=True, meaning="lengths of the axes; positions are row-major: y * W + x"
    )
    kernel: Any = integers(minimum=1, per="grid", meaning="keys that a query sees, on each axis")
    dilation: Any = integers(minimum=1, per="grid", default=1, meaning="coordinates from one key to the next")

    rule: ClassVar[str] = "k is in the neighborhood of q on every axis of the grid"

    def _check(self, problems: Problems) -> None:
        """kernel * dilation exceeds grid on an axis"""
        grid, kernel, dilation = self.grid, self.kernel, self.dilation
        if any(w * d > n for n, w, d in zip(grid, kernel, dilation, strict=True)):
            problems.value(f"kernel * dilation must fit in grid {grid} on every axis, got {kernel} and {dilation}")

    def along(self, axis: int, b: Array, i: Array, j: Array) -> Array:
        w, step = self.kernel[axis], self.dilation[axis]
        group, start = _window(i, self.grid[axis], w, step)
        return (j % step == group) & (j // step >= start) & (j // step < start + w)

    def along_spans(self, axis: int, b: Array, i: Span, j: Span) -> tuple[Array, Array]:
        n, w, step = self.grid[axis], self.kernel[axis], self.dilation[axis]
        # the keys of queries i[0]..i[1] lie from low to high
        low = clip(i[0] - w // 2 * step, 0, n - w * step)
        high = clip(i[1] + (w - 1 - w // 2) * step, w * step - 1, n - 1)
        some = (j[1] >= low) & (j[0] <= high)
        (_, first), (group, last) = _window(i[1], n, w, step), _window(i[0], n, w, step)
        every = (j[0] // step >= first) & (j[1] // step < last + w)
        if step == 1:
            return some, every
        # each key is a multiple of `step` away from its query, so that only a single pair can be a full tile
        least, most = maximum(j[0], low) - i[1], minimum(j[1], high) - i[0]
        single = (i[0] == i[1]) & (j[0] == j[1]) & (j[0] % step == group)
        return some & (most // step * step >= least), every & single

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len or shape.q_len < 1:
            return []
        made: list[Mask] = []
        for grid in ((shape.q_len,), factors(shape.q_len)):
            kernel = tuple(draws.integer(1, n + 1) for n in grid)
            made.append(
                cls(grid, kernel, tuple(draws.integer(1, n // w + 1) for n, w in zip(grid, kernel, strict=True)))
            )
        return made


def _window(i: Array, n: int, kernel: int, step: int) -> tuple[Array, Array]:
    """(g, start) of the query at coordinate `i` of an axis, in the terms of the docstring above."""
    group = i % step
    return group, clip(i // step - kernel // 2, 0, (n - group + step - 1) // step - kernel)
