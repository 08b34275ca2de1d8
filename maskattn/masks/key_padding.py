from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maskattn._arithmetic import choose
from maskattn._declared import data, declared
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import gather, wide
from maskattn._pairs import fixed
from maskattn.masks._core import Mask
from maskattn.masks.rows import FAR, Rows

if TYPE_CHECKING:
    from jaxtyping import Int


@declared
class KeyPadding(Mask):
    """0 <= k < lengths[b]: row b holds lengths[b] keys, the rest is padding at the end. True = may attend.

    Batches of sequences of different lengths.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.KeyPadding([2, 3]), 3, 3))
    ##-
    ##-
    ##-
    >>> print(masks.draw(masks.KeyPadding([2, 3]), 2, 5, batch=1))
    ###--
    ###--
    """

    lengths: Int[Array, " #B"] = data(
        "int", "[B]", minimum=0, meaning="how many keys each row holds; [1] serves every row"
    )

    rule: ClassVar[str] = "0 <= k < lengths[b]"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        length, inside = gather(self.lengths, b)
        return (k >= 0) & (k < length) & inside

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        length, inside = gather(wide(self.lengths), b)
        return Rows(0, choose(inside, length, -FAR))

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        length, inside = gather(self.lengths, b)
        some = (k_hi >= 0) & (k_lo < length) & (length > 0) & inside
        return some, (k_lo >= 0) & (k_hi < length) & inside

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("bk") if self.sizes() else frozenset("k")

    def sizes(self) -> dict[str, int]:
        return fixed(self.lengths.shape[0])

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        faults = super().conflicts(sizes)
        if isinstance(self.lengths, np.ndarray) and self.lengths.size:
            low, high = int(self.lengths.min()), int(self.lengths.max())
            if low < 0:
                faults.append(f"{self!r} expects lengths that are not negative, got {low}")
            kv_len = sizes["kv_len"]
            if isinstance(kv_len, int) and high > kv_len:
                fault = f"{self!r} expects lengths up to kv_len {kv_len}, got {high}"
                if self.lengths.size == 1:
                    fault += f"; PrefixLM({high}).at(-2**30) has the first {high} at every length (attention sinks)"
                faults.append(fault)
        return faults

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        lengths = draws.integers(min(1, shape.kv_len), shape.kv_len + 1, (shape.batch,))
        if shape.batch > 1:
            lengths[draws.integer(0, shape.batch)] = 0  # wherever another row is left that is not empty
        return [cls(lengths)]
