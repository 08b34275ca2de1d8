"""Dropout from a key: which weights are kept, drawn for any part of the score matrix by itself.

The draw is that of `jax.random.bernoulli(key, float32(1 - rate), (B or 1, H or 1, L, S))`: element i of that array, in
row-major order, depends on the key and on i only, so a kernel's tile draws its own elements and stores no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, UInt32

from maskattn._call import are_numbers
from maskattn.attention import Dropout
from maskattn.numerics.rng import bernoulli_limit
from maskattn_jax import rng
from maskattn_jax._scope import own_modes
from maskattn_jax.rng import _threefry2x32
from maskattn_jax.types import Array, RandomKey

Index: TypeAlias = int | Integer[Array, "..."]

__all__ = ["Dropout", "dense", "drop", "keep", "module_keys"]


jax.tree_util.register_dataclass(Dropout, data_fields=("words",), meta_fields=("rate", "shared", "within"))


@own_modes
def keep(
    dropout: Dropout[Array], b: Index, h: Index, q: Index, k: Index, sizes: tuple[int, int, int, int]
) -> Bool[Array, "*shape"]:
    """Which weights are kept, True = kept: bool of the shape that the indices broadcast to.

    Args:
        dropout: the rate and the key.
        b, h, q, k: indices in the score matrix: integer arrays that broadcast, or ints.
        sizes: of the whole score matrix, (B, H, L, S).

    Raises:
        ValueError: the rate is not in [0, 1].
    """
    batch, heads, q_len, kv_len = sizes
    b, h, q, k = (jnp.asarray(index).astype(jnp.uint32) for index in (b, h, q, k))
    shape = jnp.broadcast_shapes(b.shape, h.shape, q.shape, k.shape)
    b, batch = (jnp.uint32(0), 1) if "batch" in dropout.shared else (b, batch)
    h, heads = (jnp.uint32(0), 1) if "heads" in dropout.shared else (h, heads)
    place: tuple[Array, Array] = (jnp.uint32(0), b)
    wide = not are_numbers((batch, heads, q_len, kv_len)) or batch * heads * q_len * kv_len > 2**32
    for size, index in ((heads, h), (q_len, q), (kv_len, k)):
        place = _place(place, size, index) if wide else (place[0], place[1] * jnp.uint32(size) + index)
    x0, x1 = _threefry2x32(dropout.words, *place)
    kept = (x0 ^ x1) >> jnp.uint32(9) < jnp.uint32(bernoulli_limit(1.0 - dropout.rate))
    return jnp.broadcast_to(kept, shape)


@own_modes
def dense(dropout: Dropout[Array], sizes: tuple[int, int, int, int]) -> Bool[Array, "#B #H L S"]:
    """`keep` of the whole score matrix, True = kept: bool [B or 1, H or 1, L, S], 1 where the axis is shared.

    Arguments as in `keep`.
    """
    drawn = [1 if axis in dropout.shared else n for axis, n in zip(("batch", "heads", "", ""), sizes, strict=True)]
    b, h, q, k = (jnp.arange(n).reshape(-1, *[1] * (3 - axis)) for axis, n in enumerate(drawn))
    return keep(dropout, b, h, q, k, sizes)


@own_modes
def module_keys(key: RandomKey) -> tuple[UInt32[Array, " 2"], UInt32[Array, " 2"]]:
    """The keys of a module's two draws, from the one that it is given: `fold_in(key, 0)` for the attention weights and
    `fold_in(key, 1)` for the output. Errors as in `rng.words`.
    """
    return rng.fold_in(key, 0), rng.fold_in(key, 1)


@own_modes
def drop(
    x: Float[Array, "*shape"],
    rate: float,
    key: RandomKey,
    by: Callable[[Array, Array, float], Array] | None = None,
) -> Float[Array, "*shape"]:
    """Dropout of an array: x * keep / (1 - rate), with keep = bernoulli(key, float32(1 - rate), x.shape).

    Args:
        x: of any float dtype; what is dropped is exactly 0, whatever it was.
        rate: the probability of being dropped, in (0, 1).
        key: a seed, two uint32 words, or a `jax.random.key`.
        by: computes it, given x, keep and the rate, where a kernel brings its own.

    Errors as in `maskattn.rng.bernoulli`.
    """
    kept = rng.bernoulli(key, 1.0 - rate, x.shape)
    if by is not None:
        return by(x, kept, rate)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # in bfloat16, 1 - rate would be another number
    return jnp.where(kept, wide / (1.0 - rate), 0).astype(x.dtype)


def _place(place: tuple[Array, Array], size: int, index: Array) -> tuple[Array, Array]:
    """place * size + index on numbers of two uint32 words (high, low): JAX has no uint64 while x64 is off."""
    high, low = place
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    n_high, n_low = (jnp.asarray(part).astype(jnp.uint32) for part in divmod(size, 1 << 16))
    a_high, a_low = low >> half, low & mask
    # low * size in halves: the middle terms can carry
    bottom = a_low * n_low
    middle = a_high * n_low + (bottom >> half)
    other = a_low * n_high + (middle & mask)
    carried = a_high * n_high + (middle >> half) + (other >> half)
    low = (other << half) | (bottom & mask)
    total = low + index
    return high * ((n_high << half) | n_low) + carried + (total < low).astype(jnp.uint32), total
