"""Rows of a learned table, and its gradient: the same bits as NumPy and PyTorch, whatever the order they come in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from maskattn.numerics.exact import table as exact_table
from maskattn_jax._linear import linear
from maskattn_jax._scope import own_modes
from maskattn_jax.exact_ops import OPS

__all__ = ["look_up", "row_sums"]


def look_up(table: Float[Array, "R H"], rows: Int[Array, "B 1 L S"]) -> Float[Array, "B H L S"]:
    """table[rows]: table [R, H], rows int [B, 1, L, S] -> [B, H, L, S]. Its gradient is `row_sums`."""
    return _look_up(table, rows, table.shape[0])


def row_sums(d_values: Float[Array, "B H L S"], rows: Int[Array, "B 1 L S"], count: int) -> Float[Array, "R H"]:
    """The sums of d_values [B, H, L, S] over each of `count` rows: [count, H], summed exactly and rounded once."""
    return _row_sums(d_values, rows, count)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _look_up(table: Array, rows: Array, count: int) -> Array:
    return jnp.moveaxis(table[rows[:, 0]], -1, 1)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _row_sums(d_values: Array, rows: Array, count: int) -> Array:
    return _row_sums_jit(d_values, rows, count)


@partial(jax.jit, static_argnums=2)
def _row_sums_jit(d_values: Array, rows: Array, count: int) -> Array:
    with jax.enable_x64(True):
        return exact_table.row_sums(OPS, d_values, rows.astype(jnp.int64), jnp.arange(count, dtype=jnp.int64))


@dataclass(frozen=True)
class _Looked:
    """The derivative of `_look_up`. Together with `_Summed` it has derivatives of every order: each is the other's."""

    count: int

    def forward(self, rows: Array, d_table: Array) -> Array:
        return _look_up(d_table, rows, self.count)

    def transpose(self, rows: Array, d_values: Array) -> Array:
        return _row_sums(d_values, rows, self.count)


@dataclass(frozen=True)
class _Summed:
    """The derivative of `_row_sums`."""

    count: int

    def forward(self, rows: Array, d_values: Array) -> Array:
        return _row_sums(d_values, rows, self.count)

    def transpose(self, rows: Array, d_table: Array) -> Array:
        return _look_up(d_table, rows, self.count)


@_look_up.defjvp
@own_modes
def _(count: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    output = _look_up(*primals, count)
    return output, linear(_Looked(count), primals[1], tangents[0], output)


@_row_sums.defjvp
@own_modes
def _(count: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    output = _row_sums(*primals, count)
    return output, linear(_Summed(count), primals[1], tangents[0], output)
