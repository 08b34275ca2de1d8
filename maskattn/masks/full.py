from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._fields import Array
from maskattn.masks._base import Mask
from maskattn.masks._examples import Draws, Sizes


@dataclass(frozen=True)
class Full(Mask):
    """Everything: every query may attend to every key. True = may attend.

    Encoders without padding use it; it is what `mask=None` means, and the neutral element of `&`.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Full(), 3, 3))
    ###
    ###
    ###
    >>> print(masks.draw(masks.Full(), 2, 5))
    #####
    #####
    """

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "everything"

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls()]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return True

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return True, True

    @property
    def depends(self) -> frozenset[str]:
        return frozenset()
