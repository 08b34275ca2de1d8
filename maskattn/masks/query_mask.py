from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, data
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._lookup import count, lookup


@dataclass(frozen=True)
class QueryMask(Mask):
    """keep[b, q]. True = may attend.

    Padded queries, whose rows become empty and follow `empty_rows`. `keep` is a bool array
    [B, L] (in a [1, L] array, one for every row); a slot outside it is not kept.

    >>> from maskattn import masks
    >>> keep = [[True, True, False], [False, True, False]]
    >>> print(masks.draw(masks.QueryMask(keep), 3, 3))
    ###
    ###
    ---
    >>> print(masks.draw(masks.QueryMask(keep), 3, 5, batch=1))
    -----
    #####
    -----

    Raises:
        ValueError: the array has not two axes. TypeError: its dtype is not bool.
    """

    keep: Array = data()

    rule: ClassVar[str] = "keep[b, q]"

    def __post_init__(self) -> None:
        problems = Problems("QueryMask")
        value = problems.array("keep", self.keep, "bool", "[B, L]", (2,))
        problems.raise_if_any()
        object.__setattr__(self, "keep", value)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls(draws.booleans((shape.batch, shape.q_len), 0.7))]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return lookup(self.keep, b, q)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        kept = count(self.keep, b, q_lo, q_hi)
        return kept > 0, kept == q_hi - q_lo + 1

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("q") if self.keep.shape[0] == 1 else frozenset("bq")

    def sizes(self) -> dict[str, int]:
        batch, length = self.keep.shape
        return {"q_len": int(length)} if batch == 1 else {"batch": int(batch), "q_len": int(length)}
