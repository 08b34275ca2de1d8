"""Exact rotary embedding, for any framework: pairs turned by angles that are given by positions, rounded once."""

from __future__ import annotations

from typing import NamedTuple

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import FORMATS, Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, rounded
from maskattn.numerics.exact.trig import sine_cosine


class Options(NamedTuple):
    """``pairs`` is "half", (i, i + width / 2), or "interleaved", (2i, 2i + 1); ``factor`` multiplies cos and sin."""

    pairs: str
    factor: float


def _float32(ops: Ops, x: Array) -> Array:
    """float64 rounded to float32, as float64."""
    return bits.widen(ops, bits.narrow(ops, x, x * 0.0, "float32"))


def angles(ops: Ops, positions: Array, frequencies: Array) -> Array:
    """The float32 product of float32(position) and frequency, as float64 [B or 1, L, width / 2].

    The product of two float32 numbers is exact in float64, so that it is rounded once.
    """
    wide = bits.widen(ops, positions) if ops.dtype(positions) in FORMATS else ops.to_float(positions)
    if len(wide.shape) == 2:
        wide = wide[:, :, None]
    return _float32(ops, _float32(ops, wide) * _float32(ops, bits.widen(ops, frequencies)))


def _both(ops: Ops, first: Array, second: Array, pairs: str) -> Array:
    """Two arrays [..., width / 2] as the first and the second numbers of pairs, [..., width]."""
    if pairs == "half":
        return ops.concatenate([first, second], -1)
    joined = ops.concatenate([first[..., None], second[..., None]], -1)
    return ops.reshape(joined, (*first.shape[:-1], 2 * first.shape[-1]))


def _turned(ops: Ops, arrays: Arrays, options: Options, *, back: bool) -> Array:
    """Each number times the cosine, and its partner times the sine: what is computed is never joined, since XLA takes a
    minute to compile that.
    """
    x, positions, frequencies = arrays
    half = frequencies.shape[-1]
    turned, kept = x[..., : 2 * half], x[..., 2 * half :]
    ends = (turned[..., :half], turned[..., half:])
    if options.pairs == "interleaved":
        ends = (turned[..., ::2], turned[..., 1::2])
    partner = pair.widen(ops, _both(ops, ends[1], ends[0], options.pairs))
    if len(positions.shape) == 3 and positions.shape[-1] == half:
        positions = _both(ops, positions, positions, options.pairs)
    frequencies = _both(ops, frequencies, frequencies, options.pairs)
    zeros = ops.zeros((half,), like=x)
    sign = _both(ops, zeros - 1.0, zeros + 1.0, options.pairs) * (-1.0 if back else 1.0)
    sine, cosine = sine_cosine(ops, angles(ops, positions, frequencies)[:, :, None, :])
    if options.factor != 1.0:
        sine, cosine = pair.scaled(ops, sine, options.factor), pair.scaled(ops, cosine, options.factor)
    sine = Pair(sine.hi * sign, sine.lo * sign)
    result = pair.add(pair.multiply(ops, pair.widen(ops, turned), cosine), pair.multiply(ops, partner, sine))
    return ops.concatenate([rounded(ops, result, x), kept], -1)


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    return _turned(ops, arrays, options, back=False)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """The rotation by the opposite angle."""
    return (_turned(ops, (d_out, *arrays[1:]), options, back=True),)


ROTATE = Rule("rotate", _forward, _backward, Options, arrays=3)
