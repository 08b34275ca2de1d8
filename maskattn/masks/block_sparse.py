from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from maskattn._arithmetic import clip
from maskattn._declared import data, declared, integers
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import gather, lookup
from maskattn._pairs import fixed
from maskattn.masks._core import Mask

if TYPE_CHECKING:
    from jaxtyping import Bool


@declared
class BlockSparse(Mask):
    """layout[h, q // block_size, k // block_size]: an explicit map of blocks. True = may attend.

    Block-sparse kernels (Sparse Transformer, DeepSpeed, FlexAttention), learned or searched patterns. Blocks cover the
    lengths, QB = ceil(L / queries) and KB = ceil(S / keys), else `dense` and the lowerings raise a ValueError.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.BlockSparse([[True, False], [True, True]], 2), 4, 4))
    ##--
    ##--
    ####
    ####
    >>> print(masks.draw(masks.BlockSparse([[True, False, True]], (2, 3)), 2, 7))
    ###---#
    ###---#
    """

    layout: Bool[Array, "*H QB KB"] = data(
        "bool", "[QB, KB] or [H, QB, KB]", meaning="which blocks may attend; [1, QB, KB] serves every head"
    )
    block_size: Any = integers(minimum=1, per=2, meaning="queries and keys of a block")

    rule: ClassVar[str] = "layout[h, q // block_size, k // block_size]"

    def _maps(self) -> Array:
        """The layout as [H or 1, QB, KB]."""
        return self.layout if len(self.layout.shape) == 3 else self.layout[None]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return lookup(self._maps(), h, q // self.block_size[0], k // self.block_size[1])

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        maps = self._maps()
        _, rows, columns = maps.shape
        table = maps.cumsum(1).cumsum(2)  # a summed-area table: the count in a rectangle is four of its entries
        q_lo, q_hi = q_lo // self.block_size[0], q_hi // self.block_size[0]
        k_lo, k_hi = k_lo // self.block_size[1], k_hi // self.block_size[1]

        def upto(q: Array, k: Array) -> Array:
            value, inside = gather(table, h, clip(q, -1, rows - 1), clip(k, -1, columns - 1))
            return value * inside

        allowed = upto(q_hi, k_hi) - upto(q_lo - 1, k_hi) - upto(q_hi, k_lo - 1) + upto(q_lo - 1, k_lo - 1)
        return allowed > 0, allowed == (q_hi - q_lo + 1) * (k_hi - k_lo + 1)

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk") if self._maps().shape[0] == 1 else frozenset("hqk")

    def sizes(self) -> dict[str, int]:
        return fixed(heads=self._maps().shape[0])

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        faults = super().conflicts(sizes)
        axes = zip(("q_len", "kv_len"), self.layout.shape[-2:], self.block_size, strict=True)
        for axis, blocks, block in axes:
            size = sizes[axis]
            if size is not None and -(-size // block) != blocks:
                faults.append(f"{self!r} expects {axis} of {blocks} blocks of {block}, got {size}")
        return faults

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        made: list[Mask] = []
        for heads in ((), (shape.heads,)):
            sizes = (draws.integer(1, 4), draws.integer(1, 4))
            blocks = (-(-shape.q_len // sizes[0]), -(-shape.kv_len // sizes[1]))
            made.append(cls(draws.booleans((*heads, *blocks), 0.6), sizes))
        return made
