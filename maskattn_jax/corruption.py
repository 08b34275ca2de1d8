"""Corruption schemes (`maskattn.corruption`) in JAX, also under jit: the same result as NumPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from maskattn.corruption import Scheme
from maskattn_jax import rng

__all__ = ["corrupt"]

Array = Any


def corrupt(scheme: Scheme, key: Any, *args: Any, **named: Any) -> Any:
    """`scheme.apply(key, *args, **named)` on JAX arrays: integers in its result are int32.

    Under jit the scheme and its sizes are static, the key and its arrays traced; lengths are then not checked.

    Args:
        scheme: what to apply.
        key: a seed in [0, 2**31), two uint32 words, or a `jax.random.key`.
        args, named: what `apply` of the scheme takes.

    Raises:
        TypeError: scheme is no Scheme. ValueError, TypeError: as its `apply`.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"corrupt: scheme must be a scheme of maskattn.corruption, got {scheme!r}")
    return scheme.apply(key, *args, **named, ops=OPS)


class _JaxOps:
    """See ``maskattn.corruption.Ops``."""

    def key(self, key: Any) -> Any:
        return rng.words(key)

    def fold_in(self, key: Any, data: Any) -> Any:
        return rng.fold_in(key, data)

    def words(self, key: Any, shape: Sequence[int]) -> Array:
        return (rng.bits(key, tuple(shape)) >> 1).astype(jnp.int32)

    def array(self, x: Any) -> Array:
        x = jnp.asarray(x)
        return x if x.dtype == bool else x.astype(jnp.int32)

    def to_float(self, x: Array) -> Array:
        return jnp.asarray(x, jnp.float32)

    def arange(self, n: int) -> Array:
        return jnp.arange(n, dtype=jnp.int32)

    def zeros(self, shape: Sequence[int]) -> Array:
        return jnp.zeros(tuple(shape), jnp.int32)

    def where(self, condition: Array, x: Any, y: Any) -> Array:
        return jnp.where(condition, x, y)

    def sort(self, x: Array) -> Array:
        return jnp.sort(x, axis=-1)

    def argsort(self, x: Array) -> Array:
        places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        return lax.sort((x, places), dimension=-1, is_stable=True, num_keys=1)[1]

    def take_along(self, x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index, axis=-1)

    def cumsum(self, x: Array) -> Array:
        return jnp.cumsum(x, axis=-1, dtype=jnp.int32)

    def sum(self, x: Array, axes: int = 1) -> Array:
        return jnp.sum(x, axis=tuple(range(-axes, 0)), dtype=jnp.int32)

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        return jnp.concatenate(arrays, axis=-1)

    def scan(self, step: Callable[[Any, Array], tuple[Any, Array]], carry: Any, xs: Array) -> Array:
        return jnp.moveaxis(lax.scan(step, carry, jnp.moveaxis(xs, -1, 0))[1], 0, -1)

    def while_any(self, going: Callable[[Any], Array], step: Callable[[Any], Any], state: Any) -> Any:
        return lax.while_loop(lambda current: going(current).any(), step, state)


OPS = _JaxOps()
