from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._grid import coordinates, inside, spans
from maskattn.masks._lookup import clip, maximum


@dataclass(frozen=True)
class Neighborhood(Mask):
    """On every axis k is one of the `kernel` keys nearest to q, moved inwards at the borders. True = may attend.

    NATTEN's rule (Hassani et al. 2023, Neighborhood Attention Transformer; Hassani and Shi 2022 for the dilation): on
    an axis of length n, i the coordinate of q and k that of the key, the coordinates congruent modulo dilation form a
    group; with g = i % dilation, j = i // dilation and n_g = ceil((n - g) / dilation), the keys of q are
    k % dilation == g and start <= k // dilation < start + kernel, start = clip(j - kernel // 2, 0, n_g - kernel).
    Every query sees exactly `kernel` keys per axis, at the borders too. The position is row-major, y * W + x.
    `grid` is a tuple of 1 to 3 axes or, for one axis, an int; `kernel` and `dilation` are tuples, or one int for all.

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

    Raises:
        ValueError: kernel * dilation exceeds an axis, or the grid has not 1 to 3. TypeError: something is not an int.
    """

    grid: tuple[int, ...]
    kernel: Any
    dilation: Any = 1

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "k is in the neighborhood of q on every axis of the grid"

    def __post_init__(self) -> None:
        problems = Problems("Neighborhood")
        given: Any = self.grid
        grid = problems.integers("grid", given, minimum=1, length=None if hasattr(given, "__len__") else 1)
        kernel, dilation = self.kernel, self.dilation
        if not problems.faults and not 1 <= len(grid) <= 3:
            problems.value(f"grid must have 1 to 3 axes, got {grid}")
        elif not problems.faults:
            kernel = problems.integers("kernel", kernel, minimum=1, length=len(grid))
            dilation = problems.integers("dilation", dilation, minimum=1, length=len(grid))
            if not problems.faults and any(w * d > n for n, w, d in zip(grid, kernel, dilation, strict=True)):
                problems.value(f"kernel * dilation must fit in grid {grid} on every axis, got {kernel} and {dilation}")
        problems.raise_if_any()
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "dilation", dilation)

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

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        size = math.prod(self.grid)
        result = (q >= 0) & (q < size) & (k >= 0) & (k < size)
        places = zip(coordinates(q, self.grid), coordinates(k, self.grid), strict=True)
        for (i, k_at), n, w, step in zip(places, self.grid, self.kernel, self.dilation, strict=True):
            group, start = _window(i, n, w, step)
            result = result & (k_at % step == group) & (k_at // step >= start) & (k_at // step < start + w)
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        size = math.prod(self.grid)
        some, every = inside(size, q_lo, q_hi, k_lo, k_hi)
        q_lo, q_hi = clip(q_lo, 0, size - 1), clip(q_hi, 0, size - 1)
        k_lo, k_hi = clip(k_lo, 0, size - 1), clip(k_hi, 0, size - 1)
        ranges = zip(spans(q_lo, q_hi, self.grid), spans(k_lo, k_hi, self.grid), strict=True)
        for (i, j), n, w, step in zip(ranges, self.grid, self.kernel, self.dilation, strict=True):
            # the keys of queries i[0]..i[1] lie from low to high
            low = clip(i[0] - w // 2 * step, 0, n - w * step)
            high = clip(i[1] + (w - 1 - w // 2) * step, w * step - 1, n - 1)
            some = some & (j[1] >= low) & (j[0] <= high)
            (_, first), (group, last) = _window(i[1], n, w, step), _window(i[0], n, w, step)
            every = every & (j[0] // step >= first) & (j[1] // step < last + w)
            if step > 1:
                # each key is a multiple of `step` away from its query, so that only a single pair can be a full tile
                least, most = maximum(j[0], low) - i[1], -maximum(-j[1], -high) - i[0]
                some = some & (most // step * step >= least)
                every = every & (i[0] == i[1]) & (j[0] == j[1]) & (j[0] % step == group)
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk")

    def sizes(self) -> dict[str, int]:
        size = math.prod(self.grid)
        return {"q_len": size, "kv_len": size}


def _window(i: Array, n: int, kernel: int, step: int) -> tuple[Array, Array]:
    """(g, start) of the query at coordinate `i` of an axis, in the terms of the docstring above."""
    group = i % step
    return group, clip(i // step - kernel // 2, 0, (n - group + step - 1) // step - kernel)
