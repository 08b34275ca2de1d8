from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maskattn._arithmetic import clip
from maskattn._declared import data, declared
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import gather, lookup
from maskattn._pairs import AXES
from maskattn.masks._core import Mask

if TYPE_CHECKING:
    from jaxtyping import Bool


@declared
class Dense(Mask):
    """keep[b, h, q, k]: an explicit array. True = may attend.

    For a pattern that no other mask describes, and for a bool array given to `attention`. [L, S] serves every row and
    head, and an axis of size 1 every index; outside the others nothing may attend.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Dense([[True, False, True], [False, True, True], [True, True, True]]), 3, 3))
    #-#
    -##
    ###
    >>> print(masks.draw(masks.Dense([[True, False, True, True, False]]), 2, 5))
    #-##-
    #-##-
    """

    keep: Bool[Array, "*shape"] = data("bool", "broadcastable to [B, H, L, S]", meaning="which pairs may attend")

    rule: ClassVar[str] = "keep[b, h, q, k]"

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape with leading axes of size 1 up to [B, H, L, S]."""
        return (1,) * (4 - len(self.keep.shape)) + tuple(self.keep.shape)

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return lookup(self.keep.reshape(self.shape), b, h, q, k, stretch=(0, 1, 2, 3))

    def on_grid(self, shape: tuple[int, ...], arange: Callable[[int], Array]) -> Array:
        # the array as it is: looking up each of its entries would copy it
        return self.keep.reshape(self.shape)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        *_, rows, columns = self.shape
        # a summed-area table: the count in a rectangle is four of its entries
        table = vars(self).get("_table")
        table = self.keep.reshape(self.shape).cumsum(2).cumsum(3) if table is None else table
        q_lo, q_hi = (0, 0) if rows == 1 else (q_lo, q_hi)
        k_lo, k_hi = (0, 0) if columns == 1 else (k_lo, k_hi)

        def upto(q: Array, k: Array) -> Array:
            value, inside = gather(table, b, h, clip(q, -1, rows - 1), clip(k, -1, columns - 1), stretch=(0, 1))
            return value * inside

        kept = upto(q_hi, k_hi) - upto(q_lo - 1, k_hi) - upto(q_hi, k_lo - 1) + upto(q_lo - 1, k_lo - 1)
        return kept > 0, kept == (q_hi - q_lo + 1) * (k_hi - k_lo + 1)

    def counted(self) -> Dense:
        """The same mask, its array in NumPy and not to change while it is used: what `tile` counts with is made now."""
        made = object.__new__(type(self))
        table = self.keep.reshape(self.shape).astype(np.int32)
        np.cumsum(table, 3, out=table)
        for row in range(1, table.shape[2]):  # `cumsum` along this axis takes forty times as long
            table[:, :, row] += table[:, :, row - 1]
        made._set(**vars(self), _table=table)
        return made

    @property
    def depends(self) -> frozenset[str]:
        return frozenset(name for name, size in zip("bhqk", self.shape, strict=True) if size != 1)

    def sizes(self) -> dict[str, int]:
        return {axis: size for axis, size in zip(AXES, self.shape, strict=True) if size != 1}

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [
            cls(draws.booleans(shape.scores, 0.6)),
            cls(draws.booleans((1, shape.heads, 1, shape.kv_len), 0.3)),
        ]
