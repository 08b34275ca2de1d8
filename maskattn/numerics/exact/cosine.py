"""Exact vectors of length 1, for any framework, times a scale that is learned by its logarithm; rounded once."""

from __future__ import annotations

import math
from typing import NamedTuple

from maskattn._arithmetic import constant
from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.elementary import exp
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, aligned, rounded, summed


class Options(NamedTuple):
    """``eps``: the least length that is divided by; ``most``: the largest scale."""

    eps: float
    most: float


def _lengths(ops: Ops, x: Array, eps: float) -> tuple[Pair, Pair, Array]:
    """``x`` by max(|x|, eps); that length; and whether it is eps. NaN counts as long."""
    wide = pair.widen(ops, x)
    length = pair.root(ops, pair.total(ops, pair.multiply(ops, wide, wide), -1))
    short = (length.hi < eps) | ((length.hi == eps) & (length.lo < 0.0))
    length = pair.choose(ops, short, pair.exactly(constant(eps, length.hi)), length)
    return pair.divide(ops, wide, length), length, short


def _scale(ops: Ops, logarithm: Array, most: float) -> tuple[Pair, Array]:
    """e^min(s, ln most) of a widened array, and whether s is below; 0 where s is below -207."""
    over = logarithm > math.log(most)
    kept = ops.where(over, 0.0, logarithm)
    value = exp(ops, Pair(kept, ops.where(ops.isfinite(kept), kept * 0.0, 0.0)))
    return pair.where(ops, ~over, value, most), ~over


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    x, logit_scale = arrays
    unit = _lengths(ops, x, options.eps)[0]
    if logit_scale is not None:
        wide = bits.widen(ops, aligned(ops, logit_scale[:, None], x))
        unit = pair.multiply(ops, unit, _scale(ops, wide, options.most)[0])
    return rounded(ops, unit, x)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """Of u = x / |x|: (du - u (u . du)) / |x|, or du / eps where that is larger."""
    x, logit_scale = arrays
    unit, length, short = _lengths(ops, x, options.eps)
    d_unit, d_scale, below = pair.widen(ops, d_out), None, None
    if logit_scale is not None:
        wide = bits.widen(ops, aligned(ops, logit_scale[:, None], x))
        scale, below = _scale(ops, wide, options.most)
        d_unit = pair.multiply(ops, d_unit, scale)
    along = pair.total(ops, pair.multiply(ops, unit, d_unit), -1)
    if logit_scale is not None:
        d_scale = summed(ops, pair.where(ops, below, along, 0.0), logit_scale[:, None])[:, 0]
    rest = pair.add(d_unit, pair.negative(pair.multiply(ops, unit, pair.where(ops, ~short, along, 0.0))))
    return rounded(ops, pair.divide(ops, rest, length), x), d_scale


COSINE = Rule("cosine", _forward, _backward, Options, arrays=2, differentiable=2)
