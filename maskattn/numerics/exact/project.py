"""Exact ``x @ weight + bias`` for any framework, rounded once, forward and backward."""

from __future__ import annotations

import math
from typing import NamedTuple

from maskattn.numerics.exact import bits, pair, slices
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.rule import Arrays, Rule, rounded


class Options(NamedTuple):
    """Nothing is static."""


def _product(ops: Ops, a: Array, b: Array, dtype: str) -> pair.Pair:
    wide = [bits.widen(ops, a), bits.widen(ops, b)]
    if dtype != "float64":
        return slices.matmul(ops, *wide)
    return pair.matmul(ops, *(pair.input_pieces(ops, w, dtype) for w in wide))


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    """``x`` [N, in], ``weight`` [in, out], ``bias`` [out] or None, all of one type -> [N, out] in that type."""
    x, weight, bias = arrays
    result = _product(ops, x, weight, ops.dtype(x))
    if bias is not None:
        result = pair.add(result, pair.widen(ops, bias[None, :]))
    return rounded(ops, result, x)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """Gradients of x [N, in], weight [in, out] and bias [out] for ``d_out`` [N, out]; sums run over rows in order."""
    x, weight, bias = arrays
    dtype = ops.dtype(x)
    d_x = _product(ops, d_out, ops.moveaxis(weight, 0, 1), dtype)
    d_weight = _product(ops, ops.moveaxis(x, 0, 1), d_out, dtype)
    d_bias = None if bias is None else rounded(ops, pair.total(ops, pair.widen(ops, d_out), 0), bias)[0]
    return rounded(ops, d_x, x), rounded(ops, d_weight, weight), d_bias


def _shape(arrays: Arrays, options: Options) -> tuple[int, ...]:
    return (arrays[0].shape[0], arrays[1].shape[1])


def _products(arrays: Arrays, options: Options) -> int:
    products: int = arrays[0].shape[0] * math.prod(arrays[1].shape)
    return products


LINEAR = Rule("linear", _forward, _backward, Options, 3, 3, _shape, _products)
