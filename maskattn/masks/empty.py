from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._fields import Array
from maskattn.masks._base import Mask
from maskattn.masks._examples import Draws, Sizes


@dataclass(frozen=True)
class Empty(Mask):
    """Nothing: no query may attend to any key. True = may attend.

    The neutral element of `|`; every row is empty, and follows `empty_rows`.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Empty(), 3, 3))
    ---
    ---
    ---
    >>> print(masks.draw(masks.Empty(), 2, 5))
    -----
    -----
    """

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "nothing"

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls()]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return False

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return False, False

    @property
    def depends(self) -> frozenset[str]:
        return frozenset()
