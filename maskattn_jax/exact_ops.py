"""The array operations of ``maskattn.numerics.exact``, in JAX. To be used inside ``jax.enable_x64(True)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax.numpy as jnp
from jax import Array, lax

from maskattn.numerics.exact import FORMATS
from maskattn.typing import NumPyArray
from maskattn_jax._varying import manual_axes, vary

__all__ = ["OPS"]

Carry = TypeVar("Carry")


class _JaxOps:
    """See ``maskattn.numerics.exact.Ops``."""

    limit: int | None = None
    casts = False  # XLA takes subnormals for 0

    def bits(self, x: Array) -> Array:
        width = FORMATS[self.dtype(x)][2]
        return lax.bitcast_convert_type(x, jnp.dtype(f"int{width}")).astype(jnp.int64)

    def from_bits(self, x: Array, dtype: str) -> Array:
        narrow = jnp.asarray(x).astype(jnp.dtype(f"int{FORMATS[dtype][2]}"))
        return lax.bitcast_convert_type(narrow, jnp.dtype(dtype))

    def dtype(self, x: Array) -> str:
        return str(x.dtype)

    def to_int(self, x: Array) -> Array:
        return x.astype(jnp.int64)

    def to_float(self, x: Array) -> Array:
        return x.astype(jnp.float64)

    def to_float32(self, x: Array) -> Array:
        return x.astype(jnp.float32)

    def floor(self, x: Array) -> Array:
        return jnp.floor(x)

    def absolute(self, x: Array) -> Array:
        return jnp.abs(x)

    def isfinite(self, x: Array) -> Array:
        return jnp.isfinite(x)

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        return jnp.where(condition, x, y)

    def max(self, x: Array) -> Array:
        return jnp.max(x, axis=-1, keepdims=True, initial=-jnp.inf)

    def any(self, x: Array, axis: int) -> Array:
        return jnp.any(x, axis=axis, keepdims=True)

    def take(self, table: NumPyArray, index: Array) -> Array:
        return self.constants(table, index)[index]

    def constants(self, values: NumPyArray, like: Array) -> Array:
        return jnp.asarray(values)

    def meet(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32)) > 0

    def matmul(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)

    def rows(self, table: Array, index: Array) -> Array:
        return table[index]

    def first(self, index: Array, count: int) -> Array:
        numbers = jnp.arange(len(index))
        return jnp.full(count, len(index)).at[index].min(numbers)[index]

    def put(self, x: Array, index: Array, rows: Array) -> Array:
        return x.at[index].set(rows)

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(arrays, axis)

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        return jnp.broadcast_to(x, tuple(shape))

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return jnp.reshape(x, tuple(shape))

    def moveaxis(self, x: Array, source: int, target: int) -> Array:
        return jnp.moveaxis(x, source, target)

    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        return jnp.zeros(tuple(shape), jnp.float64)

    def zeros_like(self, x: Array) -> Array:
        return jnp.zeros_like(x)

    def scan(self, step: Callable[[Carry, tuple[Array, ...]], Carry], carry: Carry, xs: Sequence[Array]) -> Carry:
        if xs[0].shape[0] == 0:
            return carry
        carry = vary(carry, manual_axes((carry, tuple(xs))))
        return lax.scan(lambda c, x: (step(c, x), None), carry, tuple(xs))[0]

    def loop(self, step: Callable[[Sequence[Array]], Sequence[Array]], carry: Sequence[Array]) -> Sequence[Array]:
        start = vary(tuple(carry), manual_axes(tuple(carry)))
        return lax.while_loop(lambda c: jnp.any(c[0] != 0.0), lambda c: tuple(step(c)), start)


OPS = _JaxOps()
