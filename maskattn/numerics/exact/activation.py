"""Activations of pairs and their derivatives, and functions of one number made of them, for any framework."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from maskattn._arithmetic import constant, is_number
from maskattn.numerics.exact import bits, gauss, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.elementary import exp, horner, product
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, aligned, rounded, summed, whole

ACTIVATIONS = ("sigmoid", "silu", "tanh", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "linear")

#: Below this size tanh is its series: what 1 - e^-2|x| cancels would be missing.
_SMALL = 1 / 64
#: Beyond this size a sigmoid of what is at least as large is 0 or 1.
_LARGE = 2.0**10
#: Of the cubic in the formula of gelu by tanh.
_CUBIC = 0.044715


def _one(like: Pair) -> Pair:
    return Pair(constant(1.0, like.hi), like.hi * 0.0)


def _sigmoid(ops: Ops, x: Array) -> tuple[Pair, Pair]:
    """1 / (1 + e^-x) and its complement to 1, each with a relative error below 2^-62; 0 where it is below 2^-298."""
    return _logistic(ops, Pair(-ops.absolute(x), ops.where(ops.isfinite(x), x * 0.0, 0.0)), x < 0.0)


def _logistic(ops: Ops, down: Pair, below: Array) -> tuple[Pair, Pair]:
    """The same of a pair: ``down`` is less its size, ``below`` where it is negative."""
    e = exp(ops, down)
    one = _one(e)
    above = pair.add(one, e)
    more, less = pair.divide(ops, one, above), pair.divide(ops, e, above)
    return pair.choose(ops, below, less, more), pair.choose(ops, below, more, less)


def _tanh(ops: Ops, x: Array) -> tuple[Pair, Pair]:
    """tanh x and 1 - tanh^2 x, each with a relative error below 2^-58."""
    size = ops.absolute(x)
    zero = ops.where(ops.isfinite(x), x * 0.0, 0.0)
    e = exp(ops, Pair(size * -2.0, zero))
    above = pair.add(_one(e), e)
    value = pair.divide(ops, pair.add(_one(e), pair.negative(e)), above)
    slope = pair.divide(ops, Pair(e.hi * 4.0, e.lo * 4.0), pair.multiply(ops, above, above))
    near = ops.where(size < _SMALL, size, 0.0)
    square = product(ops, near, near)
    cubic = product(ops, product(ops, near, square), horner(ops, square, [-1 / 3, 2 / 15, -17 / 315, 62 / 2835]))
    value = pair.choose(ops, size < _SMALL, pair.two_sum(near, cubic), value)
    return pair.choose(ops, x < 0.0, pair.negative(value), pair.where(ops, x != 0.0, value, x)), slope


def _gelu(ops: Ops, x: Array) -> tuple[Pair, Pair]:
    """The probability of less than x, and its slope, the density."""
    density, tail = gauss.normal(ops, ops.absolute(x))
    return pair.choose(ops, x < 0.0, tail, pair.add(_one(tail), pair.negative(tail))), density


def _gelu_tanh(ops: Ops, x: Array) -> tuple[Pair, Pair]:
    """sigmoid u and its slope, u = 2 sqrt(2 / pi) (x + 0.044715 x^3): (1 + tanh(u / 2)) / 2, which is sigmoid u."""
    wide = pair.exactly(_bounded(ops, x))
    square = pair.scaled(ops, pair.multiply(ops, wide, wide), _CUBIC)
    hi, lo = gauss.centre()  # 2 sqrt(2 / pi) is 4 / sqrt(2 pi)
    four = Pair(constant(4.0 * hi, wide.hi), constant(4.0 * lo, wide.hi))
    u = pair.multiply(ops, pair.multiply(ops, four, wide), pair.add(_one(square), square))
    value, slope = _sloped(ops, u)
    three = pair.add(_one(square), pair.scaled(ops, square, 3.0))
    return value, pair.multiply(ops, slope, pair.multiply(ops, four, three))


def _quick_gelu(ops: Ops, x: Array) -> tuple[Pair, Pair]:
    """sigmoid(1.702 x) and its slope."""
    value, slope = _sloped(ops, pair.scaled(ops, pair.exactly(_bounded(ops, x)), 1.702))
    return value, pair.scaled(ops, slope, 1.702)


def _bounded(ops: Ops, x: Array) -> Array:
    return ops.where(x > _LARGE, _LARGE, ops.where(x < -_LARGE, -_LARGE, x))


def _sloped(ops: Ops, u: Pair) -> tuple[Pair, Pair]:
    """sigmoid u and its slope."""
    value, rest = _logistic(ops, pair.choose(ops, u.hi < 0.0, u, pair.negative(u)), u.hi < 0.0)
    return value, pair.multiply(ops, value, rest)


#: Functions x share(x): of x, the share and its slope.
_SHARES = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "quick_gelu": _quick_gelu}


def activated(ops: Ops, name: str, x: Array) -> tuple[Pair, Pair]:
    """An activation of a widened array and its derivative: one of ``ACTIVATIONS``."""
    if name == "sigmoid":
        value, rest = _sigmoid(ops, x)
        return value, pair.multiply(ops, value, rest)
    if name == "silu":
        value, rest = _sigmoid(ops, x)
        wide = pair.exactly(x)
        slope = pair.multiply(ops, value, pair.add(_one(rest), pair.multiply(ops, wide, rest)))
        return whole(ops, pair.multiply(ops, wide, value), x * value.hi), slope
    if name == "tanh":
        return _tanh(ops, x)
    if name in _SHARES:
        share, rise = _SHARES[name](ops, x)
        wide = pair.exactly(x)
        return whole(ops, pair.multiply(ops, wide, share), x * share.hi), pair.add(
            share, pair.multiply(ops, wide, rise)
        )
    zero = ops.where(ops.isfinite(x), x * 0.0, 0.0)
    if name == "linear":
        return Pair(x, zero), Pair(ops.where(is_number(x), zero + 1.0, bits.NAN), zero)
    above = ~(x <= 0.0)  # relu; NaN stays
    if name == "relu2":
        kept = ops.where(above, x, 0.0)
        return whole(ops, pair.multiply(ops, pair.exactly(kept), pair.exactly(kept)), kept * kept), Pair(
            kept * 2.0, zero
        )
    slope = ops.where(above, ops.where(is_number(x), zero + 1.0, bits.NAN), 0.0)
    return Pair(ops.where(above, x, 0.0), zero), Pair(slope, zero)


class GateOptions(NamedTuple):
    """The activation of the gate."""

    activation: str


def _gated(ops: Ops, arrays: Arrays, options: GateOptions) -> Array:
    x, gate = arrays
    wide, value = bits.widen(ops, x), activated(ops, options.activation, bits.widen(ops, aligned(ops, gate, x)))[0]
    return rounded(ops, whole(ops, pair.multiply(ops, pair.exactly(wide), value), wide * value.hi), x)


def _gated_backward(ops: Ops, arrays: Arrays, d_out: Array, options: GateOptions) -> tuple[Array | None, ...]:
    x, gate = arrays
    value, slope = activated(ops, options.activation, bits.widen(ops, aligned(ops, gate, x)))
    d_wide = pair.widen(ops, d_out)
    d_gate = pair.multiply(ops, pair.multiply(ops, d_wide, pair.widen(ops, x)), slope)
    return rounded(ops, pair.multiply(ops, d_wide, value), x), summed(ops, d_gate, gate)


class ActivateOptions(NamedTuple):
    """The activation, and what multiplies it."""

    activation: str
    factor: float


def _activate(ops: Ops, arrays: Arrays, options: ActivateOptions) -> Array:
    def function(x: Array) -> Array:
        value, _ = activated(ops, options.activation, bits.widen(ops, x))
        return rounded(ops, whole(ops, pair.scaled(ops, value, options.factor), value.hi * options.factor), x)

    return _in_pieces(ops, function, arrays[0])


def _activate_backward(ops: Ops, arrays: Arrays, d_out: Array, options: ActivateOptions) -> tuple[Array | None, ...]:
    def gradient(x: Array, d_out: Array) -> Array:
        _, slope = activated(ops, options.activation, bits.widen(ops, x))
        d_value = pair.scaled(ops, pair.widen(ops, d_out), options.factor)
        return rounded(ops, pair.multiply(ops, d_value, slope), x)

    return (_in_pieces(ops, gradient, arrays[0], d_out),)


def _in_pieces(ops: Ops, function: Callable[..., Array], *arrays: Array) -> Array:
    """A function of each number by itself, of as many at a time as stay in the cache."""
    shape, limit = arrays[0].shape, ops.limit
    size = math.prod(shape)
    if limit is None or size <= limit:
        return function(*arrays)
    flat = [ops.reshape(x, (size,)) for x in arrays]
    parts = [function(*(x[at : at + limit] for x in flat)) for at in range(0, size, limit)]
    return ops.reshape(ops.concatenate(parts, 0), shape)


GATE = Rule("gate", _gated, _gated_backward, GateOptions, arrays=2, differentiable=2)
ACTIVATE = Rule("activate", _activate, _activate_backward, ActivateOptions)
