from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._grid import GridMask, Span, check_grid, equal


@dataclass(frozen=True)
class Axial(GridMask):
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

    rule: ClassVar[str] = "q and k lie on one line along axis of the grid"

    def _check(self, problems: Problems) -> None:
        grid: Any = problems.integers("grid", self.grid, minimum=1)
        axis = problems.integer("axis", self.axis)
        if check_grid(problems, grid):
            if not -len(grid) <= axis < len(grid):
                problems.value(f"axis must be one of the {len(grid)} of grid, got {axis}")
            axis %= len(grid)
        self._set(grid=grid, axis=axis)

    @property
    def axes(self) -> list[int]:
        return [axis for axis in range(len(self.grid)) if axis != self.axis]

    def along(self, axis: int, b: Array, i: Array, j: Array) -> Array:
        return i == j

    def along_spans(self, axis: int, b: Array, i: Span, j: Span) -> tuple[Array, Array]:
        return equal(i, j)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len or shape.q_len < 1:
            return []
        return [cls(factors(shape.q_len), 0), cls(factors(shape.q_len), 1)]
