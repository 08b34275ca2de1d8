"""Exact RMS and layer norm, for any framework: the published formulas, rounded once."""

from __future__ import annotations

from typing import NamedTuple

from maskattn._arithmetic import constant
from maskattn.numerics.exact import pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, aligned, rounded, summed


class Options(NamedTuple):
    """``kind`` is "rms" or "layer"; ``over`` is "head" (the last axis) or "all" (the last two)."""

    kind: str
    eps: float
    over: str
    plus_one: bool


def _rows(ops: Ops, x: Array) -> Array:
    """[..., heads, width] -> [N, heads, width]."""
    rows = 1
    for n in x.shape[:-2]:
        rows = rows * n
    return ops.reshape(x, (rows, *x.shape[-2:]))


def _mean(ops: Ops, x: Pair, over: str) -> Pair:
    """Of each head, or of all heads together: along the width, then over the heads, term after term."""
    count = x.hi.shape[-1] * (x.hi.shape[-2] if over == "all" else 1)
    x = pair.total(ops, x, -1)
    if over == "all":
        x = pair.total(ops, x, -2)
    return pair.divide(ops, x, pair.exactly(constant(float(count), x.hi)))


def _normed(ops: Ops, x: Array, options: Options) -> tuple[Pair, Pair]:
    """``x`` [N, heads, width] less its mean, by its size; and 1 / size."""
    centred = pair.widen(ops, x)
    if options.kind == "layer":
        centred = pair.add(centred, pair.negative(_mean(ops, centred, options.over)))
    square = _mean(ops, pair.multiply(ops, centred, centred), options.over)
    size = pair.root(ops, pair.add(square, pair.exactly(constant(options.eps, square.hi))))
    inverse = pair.divide(ops, pair.exactly(constant(1.0, size.hi)), size)
    return pair.multiply(ops, centred, inverse), inverse


def _factor(ops: Ops, scale: Array, rows: Array, options: Options) -> Pair:
    factor = pair.widen(ops, aligned(ops, scale, rows))
    return pair.add(pair.exactly(constant(1.0, factor.hi)), factor) if options.plus_one else factor


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    x, scale, bias = arrays
    rows = _rows(ops, x)
    result = _normed(ops, rows, options)[0]
    if scale is not None:
        result = pair.multiply(ops, result, _factor(ops, scale, rows, options))
    if bias is not None:
        result = pair.add(result, pair.widen(ops, aligned(ops, bias, rows)))
    return ops.reshape(rounded(ops, result, x), x.shape)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """Sums over rows run in order, then over heads where they share one scale."""
    x, scale, bias = arrays
    rows = _rows(ops, x)
    normed, inverse = _normed(ops, rows, options)
    d_result = pair.widen(ops, _rows(ops, d_out))
    d_normed, d_scale, d_bias = d_result, None, None
    if scale is not None:
        d_normed = pair.multiply(ops, d_result, _factor(ops, scale, rows, options))
        d_scale = summed(ops, pair.multiply(ops, d_result, normed), scale)
    if bias is not None:
        d_bias = summed(ops, d_result, bias)
    along = _mean(ops, pair.multiply(ops, d_normed, normed), options.over)
    rest = pair.add(d_normed, pair.negative(pair.multiply(ops, normed, along)))
    if options.kind == "layer":
        rest = pair.add(rest, pair.negative(_mean(ops, d_normed, options.over)))
    d_x = pair.multiply(ops, rest, inverse)
    return ops.reshape(rounded(ops, d_x, x), x.shape), d_scale, d_bias


NORM = Rule("norm", _forward, _backward, Options, arrays=3, differentiable=3)
