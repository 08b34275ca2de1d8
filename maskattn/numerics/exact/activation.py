"""Activations of pairs and their derivatives, and functions of one number made of them, for any framework."""

from __future__ import annotations

from typing import NamedTuple

from maskattn._arithmetic import constant, is_number
from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.elementary import exp, horner, product
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, aligned, rounded, summed, whole

ACTIVATIONS = ("sigmoid", "silu", "tanh", "relu")

#: Below this size tanh is its series: what 1 - e^-2|x| cancels would be missing.
_SMALL = 1 / 64


def _one(like: Pair) -> Pair:
    return Pair(constant(1.0, like.hi), like.hi * 0.0)


def _sigmoid(ops: Ops, x: Array) -> tuple[Pair, Pair]:
    """1 / (1 + e^-x) and its complement to 1, each with a relative error below 2^-62; 0 where it is below 2^-298."""
    e = exp(ops, Pair(-ops.absolute(x), ops.where(ops.isfinite(x), x * 0.0, 0.0)))
    one = _one(e)
    above = pair.add(one, e)
    more, less = pair.divide(ops, one, above), pair.divide(ops, e, above)
    return pair.choose(ops, x < 0.0, less, more), pair.choose(ops, x < 0.0, more, less)


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
    above = ~(x <= 0.0)  # relu; NaN stays
    zero = ops.where(ops.isfinite(x), x * 0.0, 0.0)
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
    (x,) = arrays
    value, _ = activated(ops, options.activation, bits.widen(ops, x))
    return rounded(ops, whole(ops, pair.scaled(ops, value, options.factor), value.hi * options.factor), x)


def _activate_backward(ops: Ops, arrays: Arrays, d_out: Array, options: ActivateOptions) -> tuple[Array | None, ...]:
    (x,) = arrays
    _, slope = activated(ops, options.activation, bits.widen(ops, x))
    d_value = pair.scaled(ops, pair.widen(ops, d_out), options.factor)
    return (rounded(ops, pair.multiply(ops, d_value, slope), x),)


GATE = Rule("gate", _gated, _gated_backward, GateOptions, arrays=2, differentiable=2)
ACTIVATE = Rule("activate", _activate, _activate_backward, ActivateOptions)
