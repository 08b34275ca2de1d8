"""Exact ``scale * x . y`` of heads with rows that are shared by the batch, for any framework, rounded once."""

from __future__ import annotations

from typing import NamedTuple

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, rounded


class Options(NamedTuple):
    """What multiplies the products."""

    scale: float


def _grouped(ops: Ops, x: Array, y: Array) -> tuple[Array, Array]:
    """[B, L, K, D] and [R, H, D] -> [B, K, G, L, D] and [B, K, G, R, D], widened: head h reads h // G."""
    batch, length, kv_heads, width = x.shape
    rows, heads, _ = y.shape
    group = heads // kv_heads
    x = ops.moveaxis(bits.widen(ops, x), 2, 1)[:, :, None]
    y = ops.moveaxis(bits.widen(ops, y), 1, 0)
    y = ops.reshape(y, (1, kv_heads, group, rows, width))
    return (
        ops.broadcast(x, (batch, kv_heads, group, length, width)),
        ops.broadcast(y, (batch, kv_heads, group, rows, width)),
    )


def _matmul(ops: Ops, a: Array, a_type: str, b: Array, b_type: str) -> Pair:
    # a float64 beside a narrower type: halves of both, so that every product is exact
    widest = "float64" if "float64" in (a_type, b_type) else a_type
    return pair.matmul(ops, pair.input_pieces(ops, a, widest), pair.input_pieces(ops, b, widest))


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    x, y = arrays
    left, right = _grouped(ops, x, y)
    made = _matmul(ops, left, ops.dtype(x), ops.moveaxis(right, -1, -2), ops.dtype(y))
    return ops.reshape(rounded(ops, pair.scaled(ops, made, options.scale), x), _shape(arrays))


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """Sums of x over rows, then over the heads of a group; of y over the length, then over the batch."""
    x, y = arrays
    left, right = _grouped(ops, x, y)
    d = ops.reshape(bits.widen(ops, d_out), (*left.shape[:-1], right.shape[-2]))
    d_x = pair.total(ops, _matmul(ops, d, ops.dtype(x), right, ops.dtype(y)), 2)
    d_y = pair.total(ops, _matmul(ops, ops.moveaxis(d, -1, -2), ops.dtype(x), left, ops.dtype(x)), 0)
    narrow_x = rounded(ops, pair.scaled(ops, d_x, options.scale), x)[:, :, 0]
    narrow_y = rounded(ops, pair.scaled(ops, d_y, options.scale), y)
    rows, heads, width = y.shape
    return ops.moveaxis(narrow_x, 1, 2), ops.moveaxis(ops.reshape(narrow_y, (heads, rows, width)), 0, 1)


def _shape(arrays: Arrays) -> tuple[int, ...]:
    x, y = arrays
    return (x.shape[0], y.shape[1], x.shape[1], y.shape[0])


PRODUCTS = Rule("products", _forward, _backward, Options, arrays=2, differentiable=2, shape=_shape)
