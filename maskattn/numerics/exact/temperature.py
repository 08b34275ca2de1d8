"""Exact scaling by the position, for any framework: ``x * (1 + scale * ln(1 + floor((p + 1) / floor)))``."""

from __future__ import annotations

from typing import NamedTuple

from maskattn._arithmetic import constant
from maskattn.numerics.exact import bits, elementary, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, rounded, whole


class Options(NamedTuple):
    """As ``maskattn.layer.Temperature`` has them."""

    scale: float
    floor: float


def _factor(ops: Ops, positions: Array, options: Options) -> Pair:
    number = ops.to_float(positions) + 1.0
    divisor = constant(options.floor, number)
    steps = ops.floor(number / divisor)
    # the quotient may have been rounded up to the next integer
    beyond = pair.multiply(ops, pair.exactly(steps), pair.exactly(divisor))
    beyond = pair.add(beyond, pair.exactly(-number))
    steps = steps - ops.where(beyond.hi > 0.0, 1.0, 0.0)
    grown = pair.scaled(ops, elementary.log(ops, pair.exactly(steps + 1.0)), options.scale)
    return pair.add(pair.exactly(constant(1.0, number)), grown)


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    x, positions = arrays
    wide, factor = bits.widen(ops, x), _factor(ops, positions[:, :, None, None], options)
    return rounded(ops, whole(ops, pair.multiply(ops, pair.exactly(wide), factor), wide * factor.hi), x)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    return (_forward(ops, (d_out, arrays[1]), options),)


TEMPERATURE = Rule("temperature", _forward, _backward, Options, arrays=2)
