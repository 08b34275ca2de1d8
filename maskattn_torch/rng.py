"""Random numbers that are those of `jax.random`, bit for bit, as PyTorch tensors on any device.

The same names and results as `maskattn.rng`, which says what the generator is and what `start` means. A key is a tensor
of two uint32 words, or what `words` takes for one; results are on the key's device.

The draws are custom operators: PyTorch has little uint32 arithmetic, so they work on int32, which wraps alike, in place
and in pieces that stay in the cache. A compiler that traced the rounds would double its graph at each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped, UInt, UInt32

from maskattn._fields import broadcasts
from maskattn._problems import Problems
from maskattn.arrays import dtype_named, is_int, is_open
from maskattn.numerics import rng, rng_arguments
from maskattn.numerics.fma import multiply_add
from maskattn.numerics.rng import PARITY, ROTATIONS, WORD, Shape
from maskattn.typing import Width
from maskattn_torch._operators import operator
from maskattn_torch.types import Array, Device, DType, Given, RandomKey

__all__ = ["bernoulli", "bits", "fold_in", "key", "permutation", "split", "uniform", "words"]

#: What is added to the two words of a counter, before and after the groups of rounds.
Schedule: TypeAlias = list[tuple[Array, Array]]

# Each of some 130 passes goes over one piece: on a CPU its three arrays stay in the cache, and calls cost little; on a
# device a pass is a launch.
_PIECE = 1 << 17
_DEVICE_PIECE = 1 << 24

_UINTS = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32, 64: torch.uint64}
# dtype -> (bits drawn, explicit bits of the significand, integers of its width). JAX draws 8 bits for a bfloat16.
_FLOATS = {
    torch.float32: (32, 23, torch.int32),
    torch.float64: (64, 52, torch.int64),
    torch.float16: (16, 10, torch.int16),
    torch.bfloat16: (8, 7, torch.int16),
}


def key(seed: int) -> UInt32[Array, " 2"]:
    """The key of a seed in [0, 2**31), as `jax.random.key(seed)` holds it: uint32 [2], on the CPU.

    Errors as in `maskattn.rng.key`.
    """
    return torch.from_numpy(rng.key(seed))


def split(key: RandomKey, n: Shape = 2) -> UInt32[Array, "... 2"]:
    """`n` new keys from one, as `jax.random.split(key, n)`: uint32 [n, 2], or [*n, 2] where `n` is a shape.

    Arguments and errors as in `maskattn.rng.split`.
    """
    key, (shape, _) = words(key), rng_arguments.check_part(n, 0)
    counters = torch.arange(math.prod(shape), device=key.device)
    return _hash(key, counters).reshape(*shape, 2)


def fold_in(key: RandomKey, data: int | Integer[Given, "*shape"]) -> UInt32[Array, "... 2"]:
    """A new key from a key and a number, as `jax.random.fold_in(key, data)`: uint32 [2].

    Args:
        key: uint32 [2].
        data: an integer in [0, 2**32), or an integer tensor, which gives a key for each: uint32 [*data.shape, 2]. A
            tensor's values are not checked: reading them would wait for its device.

    Errors as in `maskattn.rng.fold_in`.
    """
    key = words(key)
    if isinstance(data, int):  # a number needs no NumPy, which a compiler cannot follow
        rng_arguments.check_data(data, data)
        data = torch.tensor(data, device=key.device)
    elif not isinstance(data, Array):
        data = torch.as_tensor(rng_arguments.check_numbers(data).astype(np.int64), device=key.device)
    elif data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise TypeError(f"data: expected integers in [0, 2**32), got dtype {data.dtype}")
    return _hash(key, data.to(torch.int64) & WORD)


def bits(key: RandomKey, shape: Shape = (), width: Width = 32, start: int = 0) -> UInt[Array, "*shape"]:
    """Random unsigned integers of `width` bits (8, 16, 32 or 64), as `jax.random.bits` with that dtype. Arguments and
    errors as in `maskattn.rng.bits`."""
    rng_arguments.check_width(width)
    dims, low = rng_arguments.check_part(shape, start)
    return _bits(words(key), low, math.prod(dims), width).view(_UINTS[width]).reshape(dims)


def uniform(
    key: RandomKey,
    shape: Shape = (),
    dtype: DType = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    start: int = 0,
) -> Float[Array, "*shape"]:
    """Random numbers in [minval, maxval), as `jax.random.uniform` returns them. Arguments and errors as in
    `maskattn.rng.uniform`."""
    if dtype not in _FLOATS:
        raise TypeError(f"dtype: expected float32, float64, float16 or bfloat16, got {dtype}")
    dims, first = rng_arguments.check_part(shape, start)
    return _uniform(words(key), first, math.prod(dims), dtype, float(minval), float(maxval)).reshape(dims)


def bernoulli(
    key: RandomKey, p: float | Float[Array, "*shape"] = 0.5, shape: Shape | None = None, start: int = 0
) -> Bool[Array, "*shape"]:
    """Random bools, True with probability `p`, as `jax.random.bernoulli(key, float32(p), shape)`.

    Arguments and errors as in `maskattn.rng.bernoulli`; the values of a tensor `p` are not checked: reading them would
    wait for its device.
    """
    given = tuple(p.shape) if isinstance(p, Array) else ()
    dims, low = rng_arguments.check_part(given if shape is None else shape, start)
    if not isinstance(p, Array):
        return _bernoulli(words(key), low, math.prod(dims), p).reshape(dims)
    if not p.is_floating_point():
        raise TypeError(f"p: expected a probability in [0, 1], got dtype {p.dtype}")
    if not broadcasts(given, dims):
        raise ValueError(f"p: expected an array broadcastable to shape {dims}, got {given}")
    chance = p.to(torch.float32)  # XLA takes a subnormal p for 0
    limit = torch.where(chance < 2.0**-126, 0.0, torch.ceil(chance.to(torch.float64) * 2**23)).to(torch.int32)
    return (_bits(words(key), low, math.prod(dims), 32).reshape(dims) >> 9) & 0x7FFFFF < limit


def permutation(
    key: RandomKey, x: int | Shaped[Array, "*shape"], axis: int = 0, independent: bool = False
) -> Shaped[Array, "*shape"]:
    """A random permutation, as `jax.random.permutation` returns it, of a tensor, or for `x` an int of the int32 numbers
    0 to x - 1. Arguments and errors as in `maskattn.rng.permutation`."""
    key = words(key)
    if not isinstance(x, Array):
        (size,), _ = rng_arguments.check_part(x, 0)
        x = torch.arange(size, dtype=torch.int32, device=key.device)
    axis = rng_arguments.check_axis(axis, x.ndim)
    if not independent and x.ndim > 1:
        return x.index_select(axis, _shuffled(key, torch.arange(x.shape[axis], device=key.device), 0))
    return _shuffled(key, x, axis)


def words(key: RandomKey, device: Device = None) -> UInt32[Array, " 2"]:
    """The two uint32 words of what may stand for a key: a seed in [0, 2**31), or the words, of PyTorch or NumPy; on
    `device` (default: where they are, else the CPU). Four words, those of an rbg key of JAX, are `folded` as in
    `maskattn.rng`.

    A seed may be an integer tensor []; it is then not checked, and its low 32 bits count.

    Raises:
        TypeError, ValueError: for anything else.
    """
    problems = Problems("random numbers")
    given: object = key
    rng_arguments.check_key(problems, "key", given)
    if not problems and not (is_int(given) or isinstance(given, (np.generic, np.ndarray, Array))):
        problems.type(f"key must be of PyTorch or NumPy, got {type(given).__name__}")
    problems.raise_if_any()
    if isinstance(key, Array):
        key = key if device is None else key.to(device)
        if key.ndim == 0:
            seed = key.to(torch.int32)
            return torch.stack([seed * 0, seed]).view(torch.uint32)
        return _folded(key) if len(key) == 4 else key
    if is_open(key) or isinstance(key, int) and torch.compiler.is_compiling():
        assert not isinstance(key, np.ndarray)
        seed = torch.scalar_tensor(key, dtype=torch.int64, device=device)  # which may change from call to call
        return torch.stack([torch.zeros_like(seed), seed]).to(torch.uint32)
    given = rng.two(key) if isinstance(key, np.ndarray) and key.ndim else rng.key(int(key))
    return torch.as_tensor(np.array(given), device=device)


def _shuffled(key: Array, x: Array, axis: int) -> Array:
    for _ in range(rng.shuffle_rounds(x.numel())):
        key, drawn = split(key).unbind()
        sorting = _bits(drawn, 0, x.numel(), 32).to(torch.int64) & WORD
        x = x.take_along_dim(sorting.reshape(x.shape).argsort(dim=axis, stable=True), axis)
    return x


@operator("random_folded")
def _folded(words: Array) -> Array:
    """`rng.folded` of four words: uint32 [2]."""
    x0, x1 = (word.reshape(1).clone() for word in words[2:].view(torch.int32).unbind())
    _threefry2x32(_schedule(words[:2]), x0, x1, torch.empty_like(x1))
    return torch.cat([x0, x1]).view(torch.uint32)


@_folded.register_fake
def _(words: Array) -> Array:
    return words.new_empty(2)


@operator("random_hash")
def _hash(key: Array, counters: Array) -> Array:
    """Both words of the hash of counters below 2**32: uint32 [*counters.shape, 2]."""
    x1 = counters.to(torch.int32).contiguous()
    x0 = torch.zeros_like(x1)
    _threefry2x32(_schedule(key), x0, x1, torch.empty_like(x1))
    return torch.stack([x0, x1], dim=-1).view(torch.uint32)


@_hash.register_fake
def _(key: Array, counters: Array) -> Array:
    return key.new_empty((*counters.shape, 2))


@operator("random_bits")
def _bits(key: Array, start: int, count: int, width: int) -> Array:
    """Elements start to start + count - 1 of the flat `bits`, as signed integers of that width."""
    out = torch.empty(count, dtype=_signed(width), device=key.device)
    _draw(out, key, start, lambda piece, low, x0, x1: _join(piece, x0, x1, width))
    return out


@_bits.register_fake
def _(key: Array, start: int, count: int, width: int) -> Array:
    return torch.empty(count, dtype=_signed(width), device=key.device)


@operator("random_uniform")
def _uniform(key: Array, start: int, count: int, dtype: torch.dtype, minval: float, maxval: float) -> Array:
    """Elements start to start + count - 1 of the flat `uniform`."""
    low, span = map(float, rng_arguments.check_bounds(dtype_named(str(dtype).removeprefix("torch.")), minval, maxval))
    drawn, explicit, integer = _FLOATS[dtype]
    one = torch.ones((), dtype=dtype, device=key.device)
    out = torch.empty(count, dtype=dtype, device=key.device)

    def fill(piece: Array, at: int, x0: Array, x1: Array) -> None:
        words = _join(torch.empty(piece.shape, dtype=_signed(drawn), device=key.device), x0, x1, drawn)
        significands = (words >> (drawn - explicit)).to(integer) & ((1 << explicit) - 1)
        unit = (significands | one.view(integer)).view(dtype) - one
        if low != 0 or span != 1:
            unit = _multiply_add(unit, span, low).clamp_min(low)
        piece.copy_(unit)

    _draw(out, key, start, fill)
    return out


@_uniform.register_fake
def _(key: Array, start: int, count: int, dtype: torch.dtype, minval: float, maxval: float) -> Array:
    return torch.empty(count, dtype=dtype, device=key.device)


@operator("random_bernoulli")
def _bernoulli(key: Array, start: int, count: int, p: float) -> Array:
    """Elements start to start + count - 1 of the flat `bernoulli`."""
    limit, out = rng.bernoulli_limit(p), torch.empty(count, dtype=torch.bool, device=key.device)

    def fill(piece: Array, at: int, x0: Array, x1: Array) -> None:
        words = x0.bitwise_xor_(x1)
        torch.lt(words.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF), limit, out=piece)

    _draw(out, key, start, fill)
    return out


@_bernoulli.register_fake
def _(key: Array, start: int, count: int, p: float) -> Array:
    return torch.empty(count, dtype=torch.bool, device=key.device)


def _draw(out: Array, key: Array, start: int, fill: Callable[[Array, int, Array, Array], object]) -> None:
    """Call `fill(part of out, its place in out, x0, x1)` with both words of the hashes of each piece's counters."""
    schedule, step = _schedule(key), _piece(key.device)
    for low in range(0, len(out), step):
        piece = out[low : low + step]
        first, count = start + low, len(piece)
        if first >> 32 == (first + count - 1) >> 32:
            x1 = torch.arange(count, dtype=torch.int32, device=key.device).add_(_int32(first))
            x0 = torch.full_like(x1, _int32(first >> 32))
        else:
            counters = torch.arange(first, first + count, device=key.device)
            x0, x1 = (counters >> 32).to(torch.int32), counters.to(torch.int32)
        _threefry2x32(schedule, x0, x1, torch.empty_like(x1))
        fill(piece, low, x0, x1)


def _join(out: Array, x0: Array, x1: Array, width: int) -> Array:
    """Random words of a width from the two that a hash gives, into `out`."""
    if width == 64:
        return torch.bitwise_or(x0.to(torch.int64) << 32, x1.to(torch.int64) & WORD, out=out)
    return out.copy_(x0.bitwise_xor_(x1))  # 8 and 16 bits are the lowest ones


def _multiply_add(u: Array, span: float, low: float) -> Array:
    """u * span + low: rounded once in float32 and float64, twice (as XLA does) in 16 bits."""
    if u.dtype.itemsize == 2:
        return u * span + low
    wide = u.dtype == torch.float64
    return multiply_add(torch, u.to(torch.float64), span, low, wide=wide).to(u.dtype)


def _signed(width: int) -> torch.dtype:
    return torch.uint8 if width == 8 else getattr(torch, f"int{width}")


def _int32(word: int) -> int:
    """The low word of a number, as int32 holds it."""
    return (word & WORD) - ((word & 0x80000000) << 1)


def _piece(device: torch.device) -> int:
    return _PIECE if device.type == "cpu" else _DEVICE_PIECE


def _schedule(key: Array) -> Schedule:
    """What is added to the two words of a counter: first, and after each of the five groups of rounds; int32 []."""
    k0, k1 = key.view(torch.int32).unbind()
    words = (k0, k1, k0 ^ k1 ^ PARITY)
    later = [(words[(group + 1) % 3], words[(group + 2) % 3] + (group + 1)) for group in range(5)]
    return [(words[0], words[1]), *later]


def _threefry2x32(schedule: Schedule, x0: Array, x1: Array, scratch: Array) -> None:
    """Threefry-2x32, 20 rounds, in place on two int32 tensors of one shape, modulo 2**32."""
    x0.add_(schedule[0][0])
    x1.add_(schedule[0][1])
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x0.add_(x1)
            torch.bitwise_right_shift(x1, 32 - distance, out=scratch)
            scratch.bitwise_and_((1 << distance) - 1)  # the shift is arithmetic
            x1.bitwise_left_shift_(distance).bitwise_or_(scratch).bitwise_xor_(x0)
        x0.add_(schedule[group + 1][0])
        x1.add_(schedule[group + 1][1])
