"""The random numbers of `jax.random`, as JAX arrays, from any place on.

The same names and results as `maskattn.rng`, which says what the generator is and what `start` means. A key is two
uint32 words, or what `words` takes for one (a `jax.random.key`, for instance); new keys are two words.

The draws are those of `jax.random`, in another program: the rounds are written out, and XLA fuses them, with what is
done with the words, into one pass. On a CPU that takes a fifth of the time of `jax.random.bits`, whose rounds are a
loop there.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt, UInt32

from maskattn._fields import broadcasts
from maskattn._problems import Problems
from maskattn.numerics import rng, rng_arguments
from maskattn.numerics.rng import PARITY, ROTATIONS, WORD, Shape
from maskattn.typing import NumPyDType, Width
from maskattn_jax._scope import own_modes
from maskattn_jax.types import Array, DType, Given, RandomKey

__all__ = ["bernoulli", "bits", "fold_in", "key", "permutation", "split", "uniform", "words"]


_UINTS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}
# dtype -> (bits drawn, explicit bits of the significand). JAX draws 8 bits for a bfloat16.
_FLOATS = {"float32": (32, 23), "float64": (64, 52), "float16": (16, 10), "bfloat16": (8, 7)}


def key(seed: int) -> UInt32[Array, " 2"]:
    """The key of a seed in [0, 2**31), as `jax.random.key(seed)` holds it: uint32 [2].

    Errors as in `maskattn.rng.key`.
    """
    return jnp.asarray(rng.key(seed))


@own_modes
def split(key: RandomKey, n: Shape = 2) -> UInt32[Array, "... 2"]:
    """`n` new keys from one, as `jax.random.split(key, n)`: uint32 [n, 2], or [*n, 2] where `n` is a shape.

    Arguments and errors as in `maskattn.rng.split`.
    """
    shape, _ = rng_arguments.check_part(n, 0)
    return _fold_in(words(key), jnp.arange(math.prod(shape))).reshape(*shape, 2)


@own_modes
def fold_in(key: RandomKey, data: int | Integer[Given, "*shape"]) -> UInt32[Array, "... 2"]:
    """A new key from a key and a number, as `jax.random.fold_in(key, data)`: uint32 [2].

    Args:
        key: uint32 [2].
        data: an integer in [0, 2**32), or an integer array, which gives a key for each: uint32 [*data.shape, 2]. The
            values of a JAX array are not checked: it may be traced.

    Errors as in `maskattn.rng.fold_in`.
    """
    if not isinstance(data, jax.Array):
        data = jnp.asarray(rng_arguments.check_numbers(data))
    elif not jnp.issubdtype(data.dtype, jnp.integer):
        raise TypeError(f"data: expected integers in [0, 2**32), got dtype {data.dtype}")
    return _fold_in(words(key), data)


@own_modes
def bits(key: RandomKey, shape: Shape = (), width: Width = 32, start: int = 0) -> UInt[Array, "*shape"]:
    """Random unsigned integers of `width` bits (8, 16, 32 or 64, which needs jax_enable_x64), as `jax.random.bits` with
    that dtype. Arguments and errors as in `maskattn.rng.bits`."""
    rng_arguments.check_width(width)
    _check_x64("width", width, width == 64)
    return _bits(words(key), *rng_arguments.check_part(shape, start), width)


@own_modes
def uniform(
    key: RandomKey,
    shape: Shape = (),
    dtype: DType = jnp.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    start: int = 0,
) -> Float[Array, "*shape"]:
    """Random numbers in [minval, maxval), as `jax.random.uniform` returns them; float64 needs jax_enable_x64. Arguments
    and errors as in `maskattn.rng.uniform`."""
    dtype = np.dtype(dtype)
    low, span = rng_arguments.check_bounds(dtype, minval, maxval)
    _check_x64("dtype", dtype, dtype == np.float64)
    return _uniform(words(key), *rng_arguments.check_part(shape, start), dtype, jnp.asarray(low), jnp.asarray(span))


@own_modes
def bernoulli(
    key: RandomKey, p: float | Float[Array, "*shape"] = 0.5, shape: Shape | None = None, start: int = 0
) -> Bool[Array, "*shape"]:
    """Random bools, True with probability `p`, as `jax.random.bernoulli(key, float32(p), shape)`.

    Arguments and errors as in `maskattn.rng.bernoulli`; the values of a JAX array `p`, which
    may be traced, are not checked.
    """
    given = tuple(p.shape) if isinstance(p, jax.Array) else ()
    dims, low = rng_arguments.check_part(given if shape is None else shape, start)
    if not isinstance(p, jax.Array):
        return _bits(words(key), dims, low, 32) >> 9 < rng.bernoulli_limit(p)
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(f"p: expected a probability in [0, 1], got dtype {p.dtype}")
    if not broadcasts(given, dims):
        raise ValueError(f"p: expected an array broadcastable to shape {dims}, got {given}")
    return uniform(key, dims, start=low) < p.astype(jnp.float32)


@own_modes
def permutation(
    key: RandomKey, x: int | Shaped[Array, "*shape"], axis: int = 0, independent: bool = False
) -> Shaped[Array, "*shape"]:
    """A random permutation, as `jax.random.permutation` returns it, of an array, or for `x` an int of the numbers 0 to
    x - 1 (int32, unless jax_enable_x64 is on). Arguments and errors as in `maskattn.rng.permutation`."""
    if not hasattr(x, "shape"):
        ((x,), _) = rng_arguments.check_part(x, 0)
    typed = jax.random.wrap_key_data(words(key), impl="threefry2x32")
    return jax.random.permutation(typed, x, rng_arguments.check_axis(axis, np.ndim(x) or 1), independent)


@own_modes
def words(key: RandomKey) -> UInt32[Array, " 2"]:
    """The two uint32 words of what may stand for a key: a seed in [0, 2**31), a `jax.random.key`, or the words, of JAX
    or NumPy. Four words, and keys of rbg and unsafe_rbg, which have four, are `folded` as in `maskattn.rng`.

    A seed may be an integer array [] of JAX, traced too; it is then not checked, and its low 32 bits count.

    Raises:
        TypeError, ValueError: for anything else.
    """
    problems = Problems("random numbers")
    given: object = key
    rng_arguments.check_key(problems, "key", given)
    if not problems and not isinstance(given, (int, np.generic, np.ndarray, jax.Array)):
        problems.type(f"key must be of JAX or NumPy, got {type(given).__name__}")
    problems.raise_if_any()
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if not isinstance(key, jax.Array):
        return jnp.asarray(rng.two(key) if isinstance(key, np.ndarray) and key.ndim else rng.key(int(key)))
    if key.ndim == 0:
        return jnp.stack([jnp.uint32(0), key.astype(jnp.uint32)])
    return _folded(key) if key.size == 4 else key


def _check_x64(name: str, value: object, needed: bool) -> None:
    if needed and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: {value} needs jax_enable_x64")


@jax.jit
def _folded(words: Array) -> Array:
    return jnp.stack(_threefry2x32(words[:2], words[2], words[3]))


@jax.jit
def _fold_in(key: Array, data: Array) -> Array:
    x1 = data.astype(jnp.uint32)
    if not x1.ndim:  # the rounds are a loop there, which takes less to compile; a module has a key for every layer
        typed = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.key_data(jax.random.fold_in(typed, x1))
    return jnp.stack(_threefry2x32(key, jnp.zeros_like(x1), x1), axis=-1)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _bits(key: Array, shape: tuple[int, ...], start: int, width: int) -> Array:
    """Elements of the flat `bits` from `start` on, in a shape."""
    low = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    if start + math.prod(shape) <= 2**32:
        x0, x1 = jnp.zeros_like(low), low + jnp.uint32(start)
    elif math.prod(shape) <= 2**32:
        x1 = low + jnp.uint32(start & WORD)
        x0 = jnp.uint32(start >> 32) + (x1 < low).astype(jnp.uint32)
    else:
        raise ValueError(f"shape: expected at most 2**32 elements at once, got {shape}")
    x0, x1 = _threefry2x32(key, x0, x1)
    if width == 64:
        return (x0.astype(jnp.uint64) << jnp.uint64(32) | x1.astype(jnp.uint64)).reshape(shape)
    return (x0 ^ x1).astype(_UINTS[width]).reshape(shape)  # 8 and 16 bits are the lowest ones


@partial(jax.jit, static_argnums=(1, 2, 3))
def _uniform(key: Array, shape: tuple[int, ...], start: int, dtype: NumPyDType, low: Array, span: Array) -> Array:
    """Elements of the flat `uniform` from `start` on, in a shape."""
    drawn, explicit = _FLOATS[dtype.name]
    uint = _UINTS[8 * dtype.itemsize]
    one = jnp.ones((), dtype)
    words = _bits(key, shape, start, drawn).astype(uint) >> uint(drawn - explicit)
    unit = jax.lax.bitcast_convert_type(words | jax.lax.bitcast_convert_type(one, uint), dtype) - one
    if dtype == np.float16:
        # Rounded twice on every processor: those that compute in float16 would fuse the two, and XLA takes a pair of
        # conversions away. The product is therefore rounded within float32: to 10 bits, or to multiples of 2^-24.
        wide = unit.astype(jnp.float32) * span.astype(jnp.float32)
        small = (wide + jnp.float32(0.5)) - jnp.float32(0.5)
        product = jnp.where(wide < jnp.finfo(dtype).smallest_normal, small, jax.lax.reduce_precision(wide, 8, 10))
        return jnp.maximum(low, (product + low.astype(jnp.float32)).astype(dtype))
    return jnp.maximum(low, unit * span + low)


def _threefry2x32(key: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32, 20 rounds, of uint32 counters under one key [2]."""
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    x0, x1 = x0 + words[0], x1 + words[1]
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << jnp.uint32(distance) | x1 >> jnp.uint32(32 - distance)) ^ x0
        x0, x1 = x0 + words[(group + 1) % 3], x1 + (words[(group + 2) % 3] + jnp.uint32(group + 1))
    return x0, x1
