from __future__ import annotations

from typing import ClassVar

from maskattn._declared import declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks._relational import Relational
from maskattn.masks.rows import Rows


@declared
class Causal(Relational):
    """k <= q + offset: a query sees its own position and what comes before it. True = may attend.

    Decoders (GPT, Llama). With offset 0 the diagonal starts in the top left corner, as in PyTorch's
    scaled_dot_product_attention and jax.nn; FlashAttention aligns it to the bottom right: `Causal.end_aligned`.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Causal(), 4, 4))
    #---
    ##--
    ###-
    ####
    >>> print(masks.draw(masks.Causal(), 3, 5))
    #----
    ##---
    ###--
    >>> print(masks.draw(masks.Causal.end_aligned(3, 5), 3, 5))
    ###--
    ####-
    #####
    """

    offset: int = integer(default=0, meaning="the last key that a query sees, counted from its own position")

    rule: ClassVar[str] = "k <= q + offset"

    @classmethod
    def end_aligned(cls, q_len: int, kv_len: int) -> Causal:
        """The diagonal ends in the bottom right corner: the last query sees every key. The offset is kv_len - q_len.

        Raises:
            ValueError: a length is negative. TypeError: a length is not an int.
        """
        problems = Problems("Causal.end_aligned")
        q_len, kv_len = problems.integer("q_len", q_len, minimum=0), problems.integer("kv_len", kv_len, minimum=0)
        problems.raise_if_any()
        return cls(kv_len - q_len)

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return k <= q + self.offset

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        return Rows(None, q + self.offset + 1)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return k_lo <= q_hi + self.offset, k_hi <= q_lo + self.offset

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        drawn = draws.integer(-shape.q_len, shape.kv_len + 1)
        return [cls(), cls.end_aligned(shape.q_len, shape.kv_len), cls(drawn)]
