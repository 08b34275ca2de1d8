from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from maskattn._arithmetic import maximum
from maskattn._declared import data, declared
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import at_row, rows_of
from maskattn.masks._core import Mask
from maskattn.masks.rows import Rows

if TYPE_CHECKING:
    from jaxtyping import Int


@declared
class PrefixLM(Mask):
    """k < prefix[b] or k <= q: everyone sees the prefix, what follows is causal. True = may attend.

    T5's and UniLM's prefix language model, PaliGemma.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.PrefixLM(2), 4, 4))
    ##--
    ##--
    ###-
    ####
    >>> print(masks.draw(masks.PrefixLM([0, 3]), 2, 5, batch=1))
    ###--
    ###--
    """

    prefix: Int[Array, " B"] = data(
        "int", "[B]", minimum=0, or_int=True, meaning="keys that everyone sees; [1] serves every row"
    )

    relational: ClassVar[bool] = True
    rule: ClassVar[str] = "k < prefix[b] or k <= q"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return (k < at_row(self.prefix, b)) | (k <= q)

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        return Rows(None, maximum(at_row(self.prefix, b), q + 1))

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
