"""Masks that keep slots on one side."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from maskattn._arithmetic import as_int, choose
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import count, lookup
from maskattn._pairs import fixed
from maskattn.masks._core import Mask
from maskattn.masks.rows import FAR, Rows


class Slots(Mask):
    """keep[b, i], where i is the query or the key: a subclass says which, and declares `keep`."""

    keep: Array
    of_keys: ClassVar[bool]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return lookup(self.keep, b, k if self.of_keys else q)

    def on_grid(self, shape: tuple[int, ...], arange: Callable[[int], Array]) -> Array:
        # the array as it is: looking up each of its entries takes ten times as long
        batch, length = self.keep.shape
        if length != shape[3 if self.of_keys else 2]:
            return super().on_grid(shape, arange)
        return self.keep.reshape((batch, 1, 1, length) if self.of_keys else (batch, 1, length, 1))

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        kept = lookup(self.keep, b, k if self.of_keys else q)
        return Rows(None, None, 0, as_int(kept) - 1) if self.of_keys else Rows(None, choose(kept, FAR, -FAR))

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        low, high = (k_lo, k_hi) if self.of_keys else (q_lo, q_hi)
        kept = count(self.keep, b, low, high)
        return kept > 0, kept == high - low + 1

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("k" if self.of_keys else "q") | (frozenset("b") if "batch" in self.sizes() else frozenset())

    def sizes(self) -> dict[str, int]:
        batch, length = self.keep.shape
        return fixed(batch, kv_len=length) if self.of_keys else fixed(batch, q_len=length)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        length = shape.kv_len if cls.of_keys else shape.q_len
        return [cls(draws.booleans((shape.batch, length), 0.7))]  # type: ignore[call-arg]
