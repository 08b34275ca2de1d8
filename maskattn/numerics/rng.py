"""Random numbers that are those of `jax.random`, bit for bit, from NumPy alone.

A key is two uint32 words. The generator is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw: "Parallel
random numbers: as easy as 1, 2, 3", 2011), used in counter mode as JAX does with `jax_threefry_partitionable` (its
default since 0.5): element i of an array, in row-major order, depends on the key and on i only. Any part of an array
can therefore be drawn by itself, in any order.

Four words, the key data of JAX's implementations rbg and unsafe_rbg, are taken wherever a key is: they stand for the
two that Threefry-2x32 makes of the last two under the first two (`folded`). What is drawn is then still Threefry's.

    >>> from maskattn import rng
    >>> key = rng.key(0)
    >>> rng.bits(key, (3,))
    array([4070199207, 4202968722, 1427181096], dtype=uint32)
    >>> rng.bits(rng.fold_in(key, 7), (2, 2), width=8)
    array([[186, 129],
           [188, 117]], dtype=uint8)
    >>> rng.bits(key, (2,), start=1)  # the last two of the three above
    array([4202968722, 1427181096], dtype=uint32)

`start` may be anything up to 2**63: nothing before it is drawn.

There is no `normal`: JAX takes it through XLA's inverse error function, a polynomial in a logarithm, both of whose
roundings are XLA's own on each kind of device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from maskattn.numerics.fma import multiply_add
from maskattn.numerics.rng_arguments import (
    check_axis,
    check_bounds,
    check_integer,
    check_numbers,
    check_part,
    check_shape,
    check_width,
)
from maskattn.typing import NumPyArray as Array, NumPyDType, Width

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer, Shaped, UInt, UInt32

__all__ = ["bernoulli", "bits", "fold_in", "key", "permutation", "split", "uniform"]

Shape = int | Sequence[int]  # n stands for (n,)

#: Of Threefry-2x32: how far words are rotated in the rounds of even and odd groups, and what the third word is made of.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF
# Each of some 100 passes goes over one piece: three arrays of it stay in a core's second-level cache.
_PIECE = 1 << 15

_UINTS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
# dtype -> (bits drawn, explicit bits of the significand). JAX draws 8 bits for a bfloat16.
_FLOATS = {
    np.dtype(np.float32): (32, 23),
    np.dtype(np.float64): (64, 52),
    np.dtype(np.float16): (16, 10),
    np.dtype(ml_dtypes.bfloat16): (8, 7),
}


def key(seed: int) -> UInt32[Array, " 2"]:
    """The key of a seed, as `jax.random.key(seed)` holds it: uint32 [2].

    Args:
        seed: an integer in [0, 2**31). Beyond it JAX's own key depends on whether x64 is enabled, so it is refused.

    Raises:
        TypeError: if `seed` is no integer.
        ValueError: if it is out of range.
    """
    value = check_integer("seed", seed)
    if not 0 <= value < 2**31:
        raise ValueError(f"seed: expected an integer in [0, 2**31), got {value}")
    return np.array([0, value], np.uint32)


def split(key: UInt32[Array, " 2"], n: Shape = 2) -> UInt32[Array, "*n 2"]:
    """`n` new keys from one, as `jax.random.split(key, n)`: uint32 [n, 2], or [*n, 2] where `n` is a shape.

    Raises:
        TypeError, ValueError: if `key` is not uint32 [2] or `n` not a count or a shape.
    """
    k0, k1 = _words(key)
    shape = check_shape("n", n)
    keys = np.empty((math.prod(shape), 2), np.uint32)
    for start in range(0, len(keys), _PIECE):
        stop = min(start + _PIECE, len(keys))
        keys[start:stop, 0], keys[start:stop, 1] = _hash_range(k0, k1, start, stop)
    return keys.reshape(*shape, 2)


def fold_in(key: UInt32[Array, " 2"], data: int | Integer[Array, "*n"]) -> UInt32[Array, "*n 2"]:
    """A new key from a key and a number, as `jax.random.fold_in(key, data)`: uint32 [2].

    Args:
        key: uint32 [2].
        data: an integer in [0, 2**32), or an array of such integers, which gives a key for each:
            uint32 [*data.shape, 2].

    Raises:
        TypeError, ValueError: if `key` is not uint32 [2] or `data` not such an integer.
    """
    k0, k1 = _words(key)
    numbers = check_numbers(data)
    x1 = numbers.reshape(-1).copy()
    x0 = np.zeros_like(x1)
    _threefry2x32(k0, k1, x0, x1)
    return np.stack([x0, x1], axis=-1).reshape(*numbers.shape, 2)


def bits(key: UInt32[Array, " 2"], shape: Shape = (), width: Width = 32, start: int = 0) -> UInt[Array, "*shape"]:
    """Random unsigned integers of `width` bits (8, 16, 32 or 64), as `jax.random.bits` with that dtype.

    Args:
        key: uint32 [2].
        shape: of the result.
        width: bits of each integer.
        start: the place, in a longer array, of the first element of the result.

    Raises:
        TypeError, ValueError: for anything else.
    """
    check_width(width)
    words = _words(key)
    dims, low = check_part(shape, start)
    return _bits_range(words, low, low + math.prod(dims), width).reshape(dims)


def uniform(
    key: UInt32[Array, " 2"],
    shape: Shape = (),
    dtype: DTypeLike = np.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    start: int = 0,
) -> Float[Array, "*shape"]:
    """Random numbers in [minval, maxval), as `jax.random.uniform` returns them.

    JAX computes `u * (maxval - minval) + minval` under jit, where XLA rounds a float32 or float64 multiply-add once on
    processors that can; so does this. In float16 and bfloat16 both round twice, but for float16 on processors that
    compute in it (AVX512-FP16), where XLA rounds once: the numbers here are the same on all machines. Where `maxval -
    minval` is a power of two the product is exact and the question does not arise.

    Args:
        key: uint32 [2].
        shape: of the result.
        dtype: float32, float64, float16 or bfloat16.
        minval, maxval: finite numbers, minval <= maxval; rounded to `dtype` first.
        start: the place, in a longer array, of the first element of the result.

    Raises:
        TypeError, ValueError: for anything else.
    """
    kind = np.dtype(dtype)
    low, span = check_bounds(kind, minval, maxval)
    words = _words(key)
    dims, first = check_part(shape, start)
    out = np.empty(math.prod(dims), kind)
    for at in range(0, out.size, _PIECE):
        piece = out[at : at + _PIECE]
        piece[:] = _unit_range(words, first + at, first + at + piece.size, kind)
        if low != 0 or span != 1:
            piece[:] = np.maximum(low, _multiply_add(piece, span, low))
    return out.reshape(dims)


def bernoulli(
    key: UInt32[Array, " 2"], p: float | Float[Array, "*p"] = 0.5, shape: Shape | None = None, start: int = 0
) -> Bool[Array, "*shape"]:
    """Random bools, True with probability `p`, as `jax.random.bernoulli(key, float32(p), shape)`.

    `p` is always taken in float32: JAX draws other bits for a float64 `p`, so that a Python float would give another
    mask with x64 enabled than without.

    Args:
        key: uint32 [2].
        p: a probability, or an array of them broadcastable to `shape`.
        shape: of the result; that of `p` if None.
        start: the place, in a longer array, of the first element of the result.

    Raises:
        TypeError, ValueError: if `key` is not uint32 [2], `p` not in [0, 1] or not broadcastable to `shape`.
    """
    words = _words(key)
    chance = np.asarray(p)
    if chance.dtype.kind not in "fiu" and chance.dtype != ml_dtypes.bfloat16:
        raise TypeError(f"p: expected a probability in [0, 1], got dtype {chance.dtype}")
    chance = chance.astype(np.float32)
    if not np.all((chance >= 0) & (chance <= 1)):
        raise ValueError(f"p: expected probabilities in [0, 1], got {p!r}")
    dims, first = check_part(chance.shape if shape is None else shape, start)
    limit = _limits(chance)
    try:
        limits = np.broadcast_to(limit, dims)
    except ValueError:
        raise ValueError(f"p: expected an array broadcastable to shape {dims}, got {chance.shape}") from None
    out = np.empty(math.prod(dims), np.bool_)
    flat = limits.reshape(-1) if limit.size > 1 else None
    for at in range(0, out.size, _PIECE):
        piece = out[at : at + _PIECE]
        drawn = _bits_range(words, first + at, first + at + piece.size, 32)
        drawn >>= np.uint32(9)
        np.less(drawn, limit.reshape(-1) if flat is None else flat[at : at + piece.size], out=piece)
    return out.reshape(dims)


def permutation(
    key: UInt32[Array, " 2"], x: int | Shaped[Array, "*shape"], axis: int = 0, independent: bool = False
) -> Shaped[Array, "*shape"]:
    """A random permutation, as `jax.random.permutation` returns it.

    Args:
        key: uint32 [2].
        x: what to shuffle: an array, or n for the int32 numbers 0 to n - 1.
        axis: of the array, along which it is shuffled.
        independent: shuffles each vector along the axis by itself, not all alike.

    Raises:
        TypeError, ValueError: if `key` is not uint32 [2], or `x` neither an array with such an axis nor a count.
    """
    x = np.asarray(x)
    if x.ndim == 0:
        x = np.arange(check_shape("x", x.item())[0], dtype=np.int32)
    axis = check_axis(axis, x.ndim)
    if not independent and x.ndim > 1:
        return np.take(x, _shuffled(key, np.arange(x.shape[axis]), 0), axis)
    return _shuffled(key, x, axis)


def shuffle_rounds(size: int) -> int:
    """How often `jax.random.permutation` sorts by new random words, so that ties in all of them are improbable."""
    return math.ceil(3 * math.log(max(1, size)) / math.log(WORD))


def _shuffled(key: Array, x: Array, axis: int) -> Array:
    for _ in range(shuffle_rounds(x.size)):
        key, drawn = split(key)
        x = np.take_along_axis(x, np.argsort(bits(drawn, x.shape), axis, kind="stable"), axis)
    return x


def bernoulli_limit(p: float) -> int:
    """What `bernoulli(key, p)` is in integers: True where `bits >> 9` is below this, 0 to 2**23.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1].
    """
    if isinstance(p, bool) or not isinstance(p, (int, float, np.floating)):
        raise TypeError(f"p: expected a probability in [0, 1], got {p!r}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p: expected probabilities in [0, 1], got {p!r}")
    return int(_limits(np.float32(p)))


def _limits(chance: Array | np.floating) -> Array:
    """(bits >> 9) / 2**23 < p as a bound on bits >> 9, for float32 probabilities. XLA takes a subnormal p for 0."""
    return np.where(chance < 2.0**-126, 0, np.ceil(np.float64(chance) * 2**23)).astype(np.uint32)


def _bits_range(words: tuple[int, int], start: int, stop: int, width: int = 32) -> Array:
    """Elements start to stop - 1 of the flat `bits(key, ..., width)`, without drawing the others."""
    out = np.empty(stop - start, _UINTS[width])
    for low in range(start, stop, _PIECE):
        high = min(low + _PIECE, stop)
        x0, x1 = _hash_range(*words, low, high)
        piece = out[low - start : high - start]
        if width == 64:
            np.left_shift(x0, np.uint64(32), out=piece, dtype=np.uint64)
            piece |= x1
        else:
            np.bitwise_xor(x0, x1, out=x0)
            piece[:] = x0  # 8 and 16 bits are the lowest ones
    return out


def folded(words: Array) -> Array:
    """The key that the four words of an rbg key stand for, threefry2x32((w0, w1), (w2, w3)): uint32 [4] -> [2]."""
    x0, x1 = words[2:3].copy(), words[3:4].copy()
    _threefry2x32(int(words[0]), int(words[1]), x0, x1)
    return np.concatenate([x0, x1])


def two(words: Array) -> Array:
    """The two words of a key in NumPy: four of them `folded`."""
    return folded(words) if words.size == 4 else words


def bits_each(keys: Array, count: int) -> Array:
    """`bits(key, (count,))` for each of many keys at once: uint32 [n, 2] -> uint32 [n, count]."""
    x0 = np.zeros((len(keys), count), np.uint32)
    x1 = np.tile(np.arange(count, dtype=np.uint32), (len(keys), 1))
    _threefry2x32(keys[:, :1], keys[:, 1:], x0, x1)
    return x0 ^ x1


def _unit_range(words: tuple[int, int], start: int, stop: int, dtype: NumPyDType) -> Array:
    """Elements start to stop - 1 of the flat `uniform(key, ..., dtype)`: random significands in [1, 2), less 1."""
    drawn, explicit = _FLOATS[dtype]
    uint = _UINTS[8 * dtype.itemsize]
    one = np.ones((), dtype)
    significands = _bits_range(words, start, stop, drawn).astype(uint)
    significands >>= uint(drawn - explicit)
    significands |= one.view(uint)
    return np.asarray(significands.view(dtype) - one)


def _hash_range(k0: int, k1: int, start: int, stop: int) -> tuple[Array, Array]:
    """Both words of the hashes of the counters start to stop - 1."""
    counters = np.arange(start, stop, dtype=np.uint64)
    x0, x1 = (counters >> np.uint64(32)).astype(np.uint32), counters.astype(np.uint32)
    _threefry2x32(k0, k1, x0, x1)
    return x0, x1


def _threefry2x32(k0: int | Array, k1: int | Array, x0: Array, x1: Array) -> None:
    """Threefry-2x32, 20 rounds, in place on two uint32 arrays; all arithmetic modulo 2**32.

    The words of the key are ints, or uint32 arrays that broadcast to the counters: a key for each.
    """
    keys = (k0, k1, k0 ^ k1 ^ PARITY)
    x0 += np.uint32(k0)
    x1 += np.uint32(k1)
    rotated = np.empty_like(x1)
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x0 += x1
            np.right_shift(x1, np.uint32(32 - distance), out=rotated)
            x1 <<= np.uint32(distance)
            x1 |= rotated
            x1 ^= x0
        x0 += np.uint32(keys[(group + 1) % 3])
        x1 += np.uint32((keys[(group + 2) % 3] + group + 1) & WORD)


def _multiply_add(u: Array, span: Array, low: Array) -> Array:
    """u * span + low: rounded once in float32 and float64, twice (as XLA does) in 16 bits."""
    if u.dtype.itemsize == 2:
        return np.asarray(u * span + low)
    wide = u.dtype == np.float64
    return multiply_add(np, u.astype(np.float64), float(span), float(low), wide=wide).astype(u.dtype)


def _words(key: ArrayLike) -> tuple[int, int]:
    """The two words of a key."""
    try:
        words = np.asarray(key)
    except TypeError as error:
        raise TypeError(
            f"key: expected two uint32 words, got {type(key).__name__} (jax.random.key_data gives a typed key's words)"
        ) from error
    if words.dtype != np.uint32:
        raise TypeError(f"key: expected uint32 [2], got dtype {words.dtype}, shape {words.shape}")
    if words.shape == (4,):
        words = folded(words)
    if words.shape != (2,):
        raise ValueError(f"key: expected uint32 [2], got shape {words.shape}")
    return int(words[0]), int(words[1])
