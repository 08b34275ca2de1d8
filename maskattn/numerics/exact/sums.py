"""Exact sums and products of numbers, for any framework, each rounded once; shapes broadcast."""

from __future__ import annotations

from typing import NamedTuple

from maskattn._arithmetic import broadcast_shape
from maskattn.numerics.exact import pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, rounded, summed, whole


class AddOptions(NamedTuple):
    """What multiplies the second."""

    factor: float


class Options(NamedTuple):
    """Nothing is static."""


def _wide(ops: Ops, arrays: Arrays) -> tuple[Pair, Pair]:
    """Both, with as many axes."""
    rank = max(len(x.shape) for x in arrays)
    x, y = (ops.reshape(x, (1,) * (rank - len(x.shape)) + tuple(x.shape)) for x in arrays)
    return pair.widen(ops, x), pair.widen(ops, y)


def _add(ops: Ops, arrays: Arrays, options: AddOptions) -> Array:
    x, y = _wide(ops, arrays)
    more = y if options.factor == 1.0 else pair.scaled(ops, y, options.factor)
    return rounded(ops, whole(ops, pair.add(x, more), x.hi + y.hi * options.factor), arrays[0])


def _add_backward(ops: Ops, arrays: Arrays, d_out: Array, options: AddOptions) -> tuple[Array | None, ...]:
    d_wide = pair.widen(ops, d_out)
    d_y = d_wide if options.factor == 1.0 else pair.scaled(ops, d_wide, options.factor)
    return summed(ops, d_wide, arrays[0]), summed(ops, d_y, arrays[1])


def _multiply(ops: Ops, arrays: Arrays, options: Options) -> Array:
    x, y = _wide(ops, arrays)
    return rounded(ops, whole(ops, pair.multiply(ops, x, y), x.hi * y.hi), arrays[0])


def _multiply_backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    x, y = _wide(ops, arrays)
    d_wide = pair.widen(ops, d_out)
    return summed(ops, pair.multiply(ops, d_wide, y), arrays[0]), summed(ops, pair.multiply(ops, d_wide, x), arrays[1])


def _merge(ops: Ops, arrays: Arrays, options: Options) -> Array:
    """x + y, where one is 0 the other with its sign: 0 is what has no gradient."""
    x, y = _wide(ops, arrays)
    made = pair.choose(ops, y.hi == 0.0, x, pair.choose(ops, x.hi == 0.0, y, pair.add(x, y)))
    return rounded(ops, made, arrays[0])


def _merge_backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    return tuple(rounded(ops, pair.widen(ops, d_out), x) for x in arrays)


def _shape(arrays: Arrays, options: object) -> tuple[int, ...]:
    return broadcast_shape(*arrays)


ADD = Rule("add", _add, _add_backward, AddOptions, 2, 2, _shape)
MULTIPLY = Rule("multiply", _multiply, _multiply_backward, Options, 2, 2, _shape)
MERGE = Rule("merge", _merge, _merge_backward, Options, 2, 2)
