from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._grid import coordinates, inside, spans
from maskattn.masks._lookup import clip


@dataclass(frozen=True)
class Axial(Mask):
    """q and k differ along `axis` of the grid only. True = may attend.

    Attention along one axis (Ho et al. 2019, Axial Attention): in a grid (H, W), where position = y * W + x, axis 1
    lets a token see its row and axis 0 its column; negative axes count from the end, as in NumPy. `grid` is a tuple of
    1 to 3 axes.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Axial((2, 2), axis=1), 4, 4))
    ##--
    ##--
    --##
    --##
    >>> print(masks.draw(masks.Axial((2, 3), axis=0).at(q_offset=3), 3, 6))
    #--#--
    -#--#-
    --#--#

    Raises:
        ValueError: the grid has no axis, more than three, or not this one. TypeError: something is not an int.
    """

    grid: tuple[int, ...]
    axis: int

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "q and k lie on one line along axis of the grid"

    def __post_init__(self) -> None:
        problems = Problems("Axial")
        grid: Any = problems.integers("grid", self.grid, minimum=1)
        axis = problems.integer("axis", self.axis)
        if not problems.faults:
            if not 1 <= len(grid) <= 3:
                problems.value(f"grid must have 1 to 3 axes, got {grid}")
            elif not -len(grid) <= axis < len(grid):
                problems.value(f"axis must be one of the {len(grid)} of grid, got {axis}")
            else:
                axis %= len(grid)
        problems.raise_if_any()
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "axis", axis)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len or shape.q_len < 1:
            return []
        return [cls(factors(shape.q_len), 0), cls(factors(shape.q_len), 1)]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        size = math.prod(self.grid)
        result = (q >= 0) & (q < size) & (k >= 0) & (k < size)
        for axis, (i, j) in enumerate(zip(coordinates(q, self.grid), coordinates(k, self.grid), strict=True)):
            if axis != self.axis:
                result = result & (i == j)
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        size = math.prod(self.grid)
        some, every = inside(size, q_lo, q_hi, k_lo, k_hi)
        q_lo, q_hi = clip(q_lo, 0, size - 1), clip(q_hi, 0, size - 1)
        k_lo, k_hi = clip(k_lo, 0, size - 1), clip(k_hi, 0, size - 1)
        ranges = zip(spans(q_lo, q_hi, self.grid), spans(k_lo, k_hi, self.grid), strict=True)
        for axis, (i, j) in enumerate(ranges):
            if axis != self.axis:
                some = some & (i[0] <= j[1]) & (j[0] <= i[1])
                every = every & (i[0] == i[1]) & (j[0] == j[1]) & (i[0] == j[0])
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk")

    def sizes(self) -> dict[str, int]:
        size = math.prod(self.grid)
        return {"q_len": size, "kv_len": size}
