from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, data
from maskattn._lookup import at_row, rows_of
from maskattn._problems import Problems
from maskattn.masks._core import Mask


@dataclass(frozen=True)
class PrefixLM(Mask):
    """k < prefix[b] or k <= q: everyone sees the prefix, what follows is causal. True = may attend.

    T5's and UniLM's prefix language model, PaliGemma. `prefix` is an int, or an int array [B] (in a [1] array, one
    prefix for every row).

    >>> from maskattn import masks
    >>> print(masks.draw(masks.PrefixLM(2), 4, 4))
    ##--
    ##--
    ###-
    ####
    >>> print(masks.draw(masks.PrefixLM([0, 3]), 2, 5, batch=1))
    ###--
    ###--

    Raises:
        ValueError: a prefix is negative, or the array has not one axis. TypeError: its dtype is not an int.
    """

    prefix: Array = data()

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "k < prefix[b] or k <= q"

    def _check(self, problems: Problems) -> None:
        self._set(prefix=problems.integer_or_array("prefix", self.prefix, "[B]", minimum=0))

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return (k < at_row(self.prefix, b)) | (k <= q)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        prefix = at_row(self.prefix, b)
        return (k_lo < prefix) | (k_lo <= q_hi), (k_hi < prefix) | (k_hi <= q_lo)

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("bqk") if self.sizes() else frozenset("qk")

    def sizes(self) -> dict[str, int]:
        return rows_of(self.prefix)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        most = shape.kv_len + 1
        return [cls(draws.integer(0, most)), cls(draws.integers(0, most, (shape.batch,)))]
