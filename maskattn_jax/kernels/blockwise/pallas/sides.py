"""Loads and stores of a kernel: rows of one side, queries or keys, of one head."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

#: What a kernel reads and writes: a reference to memory, for which Pallas has no type that says what it holds.
Ref: TypeAlias = Any


class Side(NamedTuple):
    """`length` rows in tiles of `block`; static. The GPU reads widths that are powers of two: more is masked."""

    length: int
    block: int

    @property
    def ragged(self) -> bool:
        """Whether the last tile is cut short."""
        return self.length % self.block != 0

    def numbers(self, start: Array) -> Array:
        """The rows of a tile, int32 [block]."""
        return start + lax.iota(jnp.int32, self.block)

    def load(
        self,
        ref: Ref,
        start: Array,
        bounded: bool,
        width: tuple[int, int],
        *at: Array | int,
        lead: tuple[Any, ...] = (),
    ) -> Array:
        """Rows from `start` on, [block, padded width]: 0 beyond the width, and, if `bounded`, beyond the length."""
        ref = ref.at[(*lead, pl.ds(start, self.block), *at, slice(None))]
        mask = self._mask(start, bounded, width)
        return plt.load(ref) if mask is None else plt.load(ref, mask=mask, other=0.0)

    def store(self, ref: Ref, start: Array, value: Array, width: tuple[int, int], *at: Array | int) -> None:
        """The inverse of `load`."""
        rows = ref.at[(pl.ds(start, self.block), *at, slice(None))]
        plt.store(rows, value.astype(ref.dtype), mask=self._mask(start, True, width))

    def load_numbers(self, ref: Ref, start: Array, bounded: bool, beyond: float, *at: Array | int) -> Array:
        """One number a row, [block]: `beyond` beyond the length."""
        ref = ref.at[(*at, pl.ds(start, self.block))]
        if bounded and self.ragged:
            return plt.load(ref, mask=self.numbers(start) < self.length, other=beyond)
        return plt.load(ref)

    def store_numbers(self, ref: Ref, start: Array, value: Array) -> None:
        """The inverse of `load_numbers`."""
        mask = self.numbers(start) < self.length if self.ragged else None
        plt.store(ref.at[pl.ds(start, self.block)], value.astype(ref.dtype), mask=mask)

    def _mask(self, start: Array, bounded: bool, width: tuple[int, int]) -> Array | None:
        """What exists of a block of `width` (its own, padded), None where all does."""
        mask = None
        if bounded and self.ragged:
            mask = (self.numbers(start) < self.length)[:, None]
        if width[0] != width[1]:
            columns = (lax.iota(jnp.int32, width[1]) < width[0])[None, :]
            mask = columns if mask is None else mask & columns
        return None if mask is None else jnp.broadcast_to(mask, (self.block, width[1]))
