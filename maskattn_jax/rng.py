"""The generator of `jax.random`, for any place of an array by itself.

The same names and results as `maskattn.rng`, which says what the generator is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskattn import rng

Array = Any

__all__ = ["words"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def words(key: Any) -> Array:
    """Two uint32 words, from what may stand for a key: a seed in [0, 2**31), a `jax.random.key`, or the words."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(key)
    return jnp.asarray(key if isinstance(key, (jax.Array, np.ndarray)) else rng.key(key))


def _threefry2x32(key: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32, 20 rounds, of uint32 counters under one key [2].

    Written out, since XLA then fuses all rounds, and what is done with the words, into one pass: five times as fast on
    a CPU as `jax.random.bits`, whose rounds are a loop there.
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + words[0], x1 + words[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << jnp.uint32(distance) | x1 >> jnp.uint32(32 - distance)) ^ x0
        x0, x1 = x0 + words[(group + 1) % 3], x1 + (words[(group + 2) % 3] + jnp.uint32(group + 1))
    return x0, x1
