"""Exact ``x @ weight + bias`` for any framework, rounded once, forward and backward."""

from __future__ import annotations

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops


def _product(ops: Ops, a: Array, b: Array, dtype: str) -> pair.Pair:
    wide = [bits.widen(ops, a), bits.widen(ops, b)]
    return pair.matmul(ops, *(pair.input_pieces(ops, w, dtype) for w in wide))


def forward(ops: Ops, x: Array, weight: Array, bias: Array | None) -> Array:
    """``x`` [N, in], ``weight`` [in, out], ``bias`` [out] or None, all of one type -> [N, out] in that type."""
    dtype = ops.dtype(x)
    result = _product(ops, x, weight, dtype)
    if bias is not None:
        result = pair.add(result, pair.widen(ops, bias[None, :]))
    return bits.narrow(ops, result.hi, result.lo, dtype)


def backward(ops: Ops, x: Array, weight: Array, d_out: Array) -> tuple[Array, Array, Array]:
    """Gradients of x [N, in], weight [in, out] and bias [out] for ``d_out`` [N, out]; sums run over rows in order."""
    dtype = ops.dtype(x)
    d_x = _product(ops, d_out, ops.moveaxis(weight, 0, 1), dtype)
    d_weight = _product(ops, ops.moveaxis(x, 0, 1), d_out, dtype)
    d_bias = pair.total(ops, pair.widen(ops, d_out), 0)
    return (
        bits.narrow(ops, d_x.hi, d_x.lo, dtype),
        bits.narrow(ops, d_weight.hi, d_weight.lo, dtype),
        bits.narrow(ops, d_bias.hi, d_bias.lo, dtype)[0],
    )
