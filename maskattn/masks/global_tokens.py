from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from maskattn._declared import data, declared
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import count, gather, within
from maskattn._pairs import fixed
from maskattn.masks._core import Mask

if TYPE_CHECKING:
    from jaxtyping import Bool


@declared
class Global(Mask):
    """tokens[b, q] or tokens[b, k]: global tokens see everything and everything sees them. True = may attend.

    Self-attention (L = S): Longformer with a SlidingWindow, BigBird with SlidingWindow and RandomBlocks. A slot outside
    `tokens` neither attends nor is attended to.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Global([True, False, False, True]), 4, 4))
    ####
    #--#
    #--#
    ####
    >>> print(masks.draw(masks.Global([[False, True, False, False]]).at(q_offset=1), 2, 4))
    ####
    -#--
    """

    tokens: Bool[Array, "*B S"] = data("bool", "[S] or [B, S]", meaning="which tokens are global")

    rule: ClassVar[str] = "tokens[b, q] or tokens[b, k]"

    def _rows(self) -> Array:
        """tokens as [B or 1, S]."""
        return self.tokens if len(self.tokens.shape) == 2 else self.tokens[None]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        tokens = self._rows()
        q_token, q_inside = gather(tokens, b, q)
        k_token, k_inside = gather(tokens, b, k)
        return (q_token | k_token) & q_inside & k_inside if 0 not in tokens.shape else q_inside & k_inside

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        tokens = self._rows()
        q_found, k_found = count(tokens, b, q_lo, q_hi), count(tokens, b, k_lo, k_hi)
        q_some, q_every = within(q_lo, q_hi, tokens.shape[1])
        k_some, k_every = within(k_lo, k_hi, tokens.shape[1])
        some = ((q_found > 0) & k_some) | ((k_found > 0) & q_some)
        full = (q_found == q_hi - q_lo + 1) | (k_found == k_hi - k_lo + 1)
        return some, full & q_every & k_every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk") if self._rows().shape[0] == 1 else frozenset("bqk")

    def sizes(self) -> dict[str, int]:
        batch, length = self._rows().shape
        return fixed(batch, q_len=length, kv_len=length)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        if shape.q_len != shape.kv_len:
            return []
        return [cls(draws.booleans((shape.kv_len,), 0.2)), cls(draws.booleans((shape.batch, shape.kv_len), 0.2))]
