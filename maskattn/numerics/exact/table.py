"""The gradient of a table whose rows were looked up many times: sums of many numbers, in one stated order."""

from __future__ import annotations

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops


def row_sums(ops: Ops, d_values: Array, rows: Array, numbers: Array) -> Array:
    """d_table[r, h] = the sum of d_values[b, h, q, k] over all (b, q, k) with rows[b, 0, q, k] == r, rounded once.

    `d_values` is [B, H, L, S], `rows` int64 [B, 1, L, S], `numbers` int64 [R], 0 to R - 1; the result is [R, H] in the
    type of `d_values`. Keys are added first, then queries, then batch rows, each in ascending order. A number that is
    not finite makes the entries that it is added to NaN.
    """
    batch, heads, q_len, kv_len = d_values.shape
    x = ops.reshape(ops.moveaxis(bits.widen(ops, d_values), 1, 3), (batch * q_len, kv_len, heads))
    finite = ops.isfinite(x)
    hot = ops.reshape(rows, (batch * q_len, 1, kv_len)) == numbers[:, None]
    # a product with 0 or 1 is exact
    sums = pair.total(ops, pair.matmul(ops, [ops.to_float(hot)], [ops.where(finite, x, 0.0)]), 0)
    spoiled = ops.any(ops.meet(hot, ~finite), 0)
    hi = ops.where(spoiled, bits.NAN, sums.hi)
    return bits.narrow(ops, hi[0], sums.lo[0], ops.dtype(d_values))
