"""Exact dropout of any array, for any framework: ``x * keep / kept``, rounded once. Its gradient is the same map."""

from __future__ import annotations

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops


def drop(ops: Ops, x: Array, keep: Array, kept: float) -> Array:
    """``x`` / ``kept`` where ``keep`` (bool, the shape of ``x``), and +0, whatever ``x`` is, where not."""
    wide = bits.widen(ops, x)
    finite = ops.isfinite(wide)
    number = ops.where(finite, wide, 0.0)
    zero = number * 0.0
    quotient = pair.divide(ops, pair.Pair(number, zero), pair.Pair(zero + kept, zero))
    hi = ops.where(keep, ops.where(finite, quotient.hi, wide), 0.0)
    return bits.narrow(ops, hi, ops.where(keep & finite, quotient.lo, 0.0), ops.dtype(x))
