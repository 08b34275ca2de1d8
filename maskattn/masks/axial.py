from __future__ import annotations

from typing import ClassVar

from maskattn._declared import declared, integer, integers
from maskattn._examples import Draws, Sizes, factors
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._grid import GridMask, Span, equal


@declared
class Axial(GridMask):
    """q and k differ along `axis` of the grid only. True = may attend.

    Attention along one axis (Ho et al. 2019, Axial Attention): in a grid (H, W) axis 1 lets a token see its row and
    axis 0 its column.

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
    """

    grid: tuple[int, ...] = integers(
        minimum=1, least=1, most=3, meaning="lengths of the axes; positions are row-major: y * W + x"
    )
    axis: int = integer(meaning="the axis along which tokens see each other; negative counts from the end")

    rule: ClassVar[str] = "q and k lie on one line along axis of the grid"

    def _check(self, problems: Problems) -> None:
        """axis is none of grid"""
        if not -len(self.grid) <= self.axis < len(self.grid):
            problems.value(f"axis must be one of the {len(self.grid)} of grid, got {self.axis}")
        self._set(axis=self.axis % len(self.grid))

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
