"""Corruption schemes (`maskattn.corruption`) in JAX, also under jit: the same result as NumPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax.numpy as jnp
from jax import Array, lax

from maskattn.corruption import Ops, Scheme
from maskattn_jax import rng
from maskattn_jax._scope import own_modes
from maskattn_jax._varying import manual_axes, vary
from maskattn_jax.types import RandomKey

__all__ = ["corrupt"]

Result = TypeVar("Result")

Carry = TypeVar("Carry")


@own_modes
def corrupt(scheme: Scheme[Result], key: RandomKey, *args: object, **named: object) -> Result:
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
    words = rng.words(key)
    axes = manual_axes([x for x in (words, *args, *named.values()) if isinstance(x, Array)])
    result = scheme.apply(words, *args, **named, ops=_JaxOps(axes))
    # what is looked up at places that are drawn is not to be fused with the draws: XLA may take them again for each
    # entry, or not come to an end (openxla/xla#41173)
    return lax.optimization_barrier(result)


class _JaxOps(Ops):
    """Array operations of JAX, inside a `shard_map` those of a device.

    Args:
        axes: those of the mesh over which the key or an array varies.
    """

    xp, rng, integer = jnp, rng, jnp.int32

    def __init__(self, axes: tuple[str, ...] = ()) -> None:
        self._axes = axes

    def key(self, key: RandomKey) -> Array:
        return rng.words(key)

    def words(self, key: Array, shape: Sequence[int]) -> Array:
        return lax.optimization_barrier(super().words(key, shape))

    def argsort(self, x: Array) -> Array:
        places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        return lax.sort((x, places), dimension=-1, is_stable=True, num_keys=1)[1]

    def scan(self, step: Callable[[Carry, Array], tuple[Carry, Array]], carry: Carry, xs: Array) -> Array:
        return jnp.moveaxis(lax.scan(step, vary(carry, self._axes), jnp.moveaxis(xs, -1, 0))[1], 0, -1)

    def while_any(self, going: Callable[[Carry], Array], step: Callable[[Carry], Carry], state: Carry) -> Carry:
        return lax.while_loop(lambda current: going(current).any(), step, vary(state, self._axes))
