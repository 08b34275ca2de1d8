from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask


@dataclass(frozen=True)
class BlockCausal(Mask):
    """k // size <= q // size: causal from block to block, everything inside a block. True = may attend.

    Autoregression over blocks: video and image tokens frame by frame, the clean half of block diffusion (BD3-LM).

    >>> from maskattn import masks
    >>> print(masks.draw(masks.BlockCausal(2), 4, 4))
    ##--
    ##--
    ####
    ####
    >>> print(masks.draw(masks.BlockCausal(2), 3, 7))
    ##-----
    ##-----
    ####---

    Raises:
        ValueError: size is less than 1. TypeError: it is not an int.
    """

    size: int

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "k // size <= q // size"

    def __post_init__(self) -> None:
        problems = Problems("BlockCausal")
        object.__setattr__(self, "size", problems.integer("size", self.size, minimum=1))
        problems.raise_if_any()

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.integer(2, 5))]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return k // self.size <= q // self.size

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return k_lo // self.size <= q_hi // self.size, k_hi // self.size <= q_lo // self.size

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk")
