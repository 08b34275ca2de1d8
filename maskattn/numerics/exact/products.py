"""Exact ``scale * x . y`` of heads with rows that are shared by the batch, for any framework, rounded once."""

from __future__ import annotations

import math
from typing import NamedTuple

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.numerics.exact.rule import Arrays, Rule, rounded


class Options(NamedTuple):
    """What multiplies the products."""

    heads: int
    scale: float


def _by_head(ops: Ops, x: Array, heads: int) -> Array:
    """[.., L, K, D], widened, as [.., H, L, D]: head h has the numbers of h // (H // K)."""
    x = ops.moveaxis(bits.widen(ops, x), -2, -3)
    front, rest = x.shape[:-3], x.shape[-3:]
    grouped = ops.reshape(x, (*front, rest[0], 1, *rest[1:]))
    spread = ops.broadcast(grouped, (*front, rest[0], heads // rest[0], *rest[1:]))
    return ops.reshape(spread, (*front, heads, *rest[1:]))


def _sum_of_group(ops: Ops, x: Pair, like: Array) -> Array:
    """The gradient [.., H, L, D] of what was spread by ``_by_head``: summed over the heads of a group, in order."""
    kv_heads, front, rest = like.shape[-2], x.hi.shape[:-3], x.hi.shape[-2:]
    grouped = (*front, kv_heads, x.hi.shape[-3] // kv_heads, *rest)
    total = pair.total(ops, Pair(ops.reshape(x.hi, grouped), ops.reshape(x.lo, grouped)), -3)
    return ops.moveaxis(ops.reshape(rounded(ops, total, like), (*front, kv_heads, *rest)), -3, -2)


def _matmul(ops: Ops, a: Array, b: Array, *types: str) -> Pair:
    # beside float64 both as halves, so that every product is exact
    widest = "float64" if "float64" in types else types[0]
    return pair.matmul(ops, pair.input_pieces(ops, a, widest), pair.input_pieces(ops, b, widest))


def _sides(ops: Ops, arrays: Arrays, heads: int) -> tuple[Array, Array]:
    x, y = (_by_head(ops, side, heads) for side in arrays)
    return x, ops.broadcast(y[None], (x.shape[0], *y.shape))


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    x, y = _sides(ops, arrays, options.heads)
    made = _matmul(ops, x, ops.moveaxis(y, -1, -2), *map(ops.dtype, arrays))
    return rounded(ops, pair.scaled(ops, made, options.scale), arrays[0])


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """Of x summed over rows; of y over the length, then over the batch; both then over the heads of a group."""
    x, y = _sides(ops, arrays, options.heads)
    types, d = [ops.dtype(a) for a in arrays], bits.widen(ops, d_out)
    d_x = pair.scaled(ops, _matmul(ops, d, y, *types), options.scale)
    d_y = pair.total(ops, _matmul(ops, ops.moveaxis(d, -1, -2), x, *types), 0)
    d_y = pair.scaled(ops, Pair(d_y.hi[0], d_y.lo[0]), options.scale)
    return _sum_of_group(ops, d_x, arrays[0]), _sum_of_group(ops, d_y, arrays[1])


def _shape(arrays: Arrays, options: Options) -> tuple[int, ...]:
    x, y = arrays
    return (x.shape[0], options.heads, x.shape[1], y.shape[0])


def _products(arrays: Arrays, options: Options) -> int:
    products: int = math.prod(_shape(arrays, options)) * arrays[0].shape[-1]
    return products


PRODUCTS = Rule("products", _forward, _backward, Options, 2, 2, _shape, _products)
