"""Exact bounds, for any framework: ``min(max(x, -limit), limit)``."""

from __future__ import annotations

from typing import NamedTuple

from maskattn.numerics.exact import bits
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.rule import Arrays, Rule


class Options(NamedTuple):
    """``limit``, which is rounded to the type of what it bounds."""

    limit: float


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    (x,) = arrays
    wide = bits.widen(ops, x)
    wide = ops.where(wide > options.limit, options.limit, ops.where(wide < -options.limit, -options.limit, wide))
    return bits.narrow(ops, wide, wide * 0.0, ops.dtype(x))


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """What is on a bound is not beyond it, and has its gradient."""
    (x,) = arrays
    beyond = ops.absolute(bits.widen(ops, x)) > options.limit
    wide = ops.where(beyond, 0.0, bits.widen(ops, d_out))
    return (bits.narrow(ops, wide, ops.where(beyond, 0.0, wide * 0.0), ops.dtype(x)),)


CLIP = Rule("clip", _forward, _backward, Options)
