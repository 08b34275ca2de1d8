from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, data
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._lookup import count, lookup


@dataclass(frozen=True)
class KeyMask(Mask):
    """keep[b, k]. True = may attend.

    Padding anywhere in the row (left padding, holes), Hugging Face's attention_mask == 1. `keep` is a bool array
    [B, S] (in a [1, S] array, one for every row); a slot outside it is not kept.

    >>> from maskattn import masks
    >>> keep = [[False, True, True, True], [True, False, True, False]]
    >>> print(masks.draw(masks.KeyMask(keep), 4, 4))
    -###
    -###
    -###
    -###
    >>> print(masks.draw(masks.KeyMask(keep), 2, 4, batch=1))
    #-#-
    #-#-

    Raises:
        ValueError: the array has not two axes. TypeError: its dtype is not bool.
    """

    keep: Array = data()

    rule: ClassVar[str] = "keep[b, k]"

    def __post_init__(self) -> None:
        problems = Problems("KeyMask")
        value = problems.array("keep", self.keep, "bool", "[B, S]", (2,))
        problems.raise_if_any()
        object.__setattr__(self, "keep", value)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.booleans((shape.batch, shape.kv_len), 0.7))]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return lookup(self.keep, b, k)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        kept = count(self.keep, b, k_lo, k_hi)
        return kept > 0, kept == k_hi - k_lo + 1

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("k") if self.keep.shape[0] == 1 else frozenset("bk")

    def sizes(self) -> dict[str, int]:
        batch, length = self.keep.shape
        return {"kv_len": int(length)} if batch == 1 else {"batch": int(batch), "kv_len": int(length)}
