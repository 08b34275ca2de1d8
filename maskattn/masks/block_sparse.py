from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from maskattn._arithmetic import clip
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, data
from maskattn._lookup import gather, lookup
from maskattn._pairs import fixed
from maskattn._problems import Problems
from maskattn.masks._core import Mask


@dataclass(frozen=True)
class BlockSparse(Mask):
    """layout[h, q // block_size, k // block_size]: an explicit map of blocks. True = may attend.

    Block-sparse kernels (Sparse Transformer, DeepSpeed, FlexAttention), learned or searched patterns. `layout` is a
    bool array [QB, KB], or [H, QB, KB] for a map per head (in a [1, QB, KB] array, one for every head). `block_size` is
    an int, or a tuple (queries, keys). Blocks cover the lengths: QB = ceil(L / queries), KB = ceil(S / keys).

    >>> from maskattn import masks
    >>> print(masks.draw(masks.BlockSparse([[True, False], [True, True]], 2), 4, 4))
    ##--
    ##--
    ####
    ####
    >>> print(masks.draw(masks.BlockSparse([[True, False, True]], (2, 3)), 2, 7))
    ###---#
    ###---#

    Raises:
        ValueError: the array has neither two axes nor three, or block_size is less than 1. TypeError: the layout is not
        bool, or block_size not an int. `dense` and the lowerings raise a ValueError where the blocks do not cover the
        lengths.
    """

    layout: Array = data()
    block_size: Any  # type: ignore[misc]  # mypy takes data() for a default

    rule: ClassVar[str] = "layout[h, q // block_size, k // block_size]"

    def _check(self, problems: Problems) -> None:
        layout = problems.array("layout", self.layout, "bool", "[QB, KB] or [H, QB, KB]", (2, 3))
        block_size = problems.integers("block_size", self.block_size, minimum=1, length=2)
        self._set(layout=layout, block_size=block_size)

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
