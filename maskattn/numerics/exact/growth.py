"""Exact frequencies of a rotary embedding whose theta grows with the length of the call, for any framework."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maskattn._arithmetic import constant
from maskattn.numerics.exact import elementary, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.rule import Arrays, Rule, rounded


class Options(NamedTuple):
    """``by`` and ``trained`` of ``maskattn.layer.DynamicNTK``."""

    by: float
    trained: float


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    """Frequency j of n divided by (1 + by (length / trained - 1))^(j / (n - 1)), rounded once."""
    frequencies, length = arrays
    count = frequencies.shape[0]
    number = ops.to_float(length)
    number = ops.where(number < options.trained, options.trained, number)
    ratio = pair.divide(ops, pair.exactly(number), pair.exactly(constant(options.trained, number)))
    one = pair.exactly(constant(1.0, number))
    growth = pair.add(one, pair.scaled(ops, pair.add(ratio, pair.negative(one)), options.by))
    steps = ops.constants(-np.arange(count) / max(count - 1, 1), like=number)
    power = elementary.exp(ops, pair.multiply(ops, elementary.log(ops, growth), pair.exactly(steps)))
    return rounded(ops, pair.multiply(ops, pair.widen(ops, frequencies), power), frequencies)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    return ()


GROWTH = Rule("growth", _forward, _backward, Options, arrays=2, differentiable=0)
