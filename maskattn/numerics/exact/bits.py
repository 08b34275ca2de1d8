"""Widening, narrowing and cutting floating-point numbers by their bit patterns, so that no framework's casts are used.

Casts differ: XLA flushes float32 subnormals, PyTorch and XLA round float64 to float16 twice, and everything rounds
float64 to bfloat16 twice. Integer operations on the patterns do not.
"""

from __future__ import annotations

from maskattn._arithmetic import is_number
from maskattn.numerics.exact._ops import FORMATS, Array, Ops

NAN = float("nan")
_NAN_BITS = 0x7FF8000000000000
_MANTISSA = (1 << 52) - 1
#: float64 inputs below this magnitude count as 0, so that no product underflows: what underflows differs between
#: frameworks
SMALLEST_FLOAT64 = 2.0**-250
#: the same for intermediate results
SMALLEST = 2.0**-500


def power_of_two(ops: Ops, exponent: Array) -> Array:
    """2^exponent as float64 for an int64 exponent in [-1022, 1023]."""
    return ops.from_bits((exponent + 1023) << 52, "float64")


def widen(ops: Ops, x: Array) -> Array:
    """Any floating type to float64, exactly; NaNs become the one quiet NaN."""
    dtype = ops.dtype(x)
    if ops.casts and dtype != "float64":
        wide = ops.to_float(x)
        return ops.where(is_number(wide), wide, NAN)
    mantissa_bits, bias, width = FORMATS[dtype]
    pattern = ops.bits(x)
    if dtype == "float64":
        small = ops.absolute(x) < SMALLEST_FLOAT64
        return ops.from_bits(
            ops.where(is_number(x), ops.where(small, pattern & (-1 << 63), pattern), _NAN_BITS), "float64"
        )
    top = (1 << (width - 1 - mantissa_bits)) - 1
    exponent = (pattern >> mantissa_bits) & top
    fraction = pattern & ((1 << mantissa_bits) - 1)
    normal = exponent > 0
    significand = ops.to_float(fraction + ops.where(normal, 1 << mantissa_bits, 0))
    scale = power_of_two(ops, ops.where(normal, exponent, 1) - (bias + mantissa_bits))
    finite = significand * scale  # exact: a power of two, far from float64's limits
    special = ops.where(fraction == 0, ops.from_bits(ops.to_int(finite * 0) + (0x7FF << 52), "float64"), NAN)
    size = ops.where(exponent == top, special, finite)
    return ops.from_bits(ops.where(pattern < 0, ops.bits(size) | (-1 << 63), ops.bits(size)), "float64")


def narrow(ops: Ops, hi: Array, lo: Array, dtype: str) -> Array:
    """``hi + lo`` (a normalised pair) to ``dtype``, rounded once, to nearest, ties to even; subnormals kept.

    ``hi`` is first rounded to odd by the sign of ``lo``, which keeps what a tie depends on (Boldo and Melquiond 2008,
    "Emulation of FMA and correctly rounded sums", IEEE Trans. Comput. 57(4), theorem 1).
    """
    if dtype == "float64":
        return ops.from_bits(ops.where(is_number(hi), ops.bits(hi), _NAN_BITS), "float64")
    mantissa_bits, bias, width = FORMATS[dtype]
    pattern = ops.bits(hi)
    even = (pattern & 1) == 0
    outward = (lo > 0) == (hi > 0)
    odd = ops.where(outward, pattern + 1, pattern - 1)
    pattern = ops.where((lo != 0) & even & (hi != 0) & ops.isfinite(hi), odd, pattern)
    if ops.casts and dtype == "float32":
        return ops.to_float32(ops.where(is_number(hi), ops.from_bits(pattern, "float64"), NAN))
    negative = pattern < 0
    size = pattern & ~(-1 << 63)
    exponent = (size >> 52) - 1023
    significand = (size & _MANTISSA) + (1 << 52)
    below = (1 - bias) - exponent  # how far below the smallest normal number
    extra = ops.where(below > 0, ops.where(below > 60, 60, below), 0)
    shift = (52 - mantissa_bits) + extra
    shift = ops.where(shift > 60, 60, shift)
    kept = significand >> shift
    rest = significand & ((kept * 0 + 1 << shift) - 1)
    half = kept * 0 + 1 << (shift - 1)
    kept = kept + ops.to_int(ops.to_float((rest > half) | ((rest == half) & ((kept & 1) == 1))))
    # a carry out of the mantissa moves into the exponent field by itself
    field = ops.where(below > 0, kept, kept + ((exponent + bias - 1) << mantissa_bits))
    infinite = ((1 << (width - 1 - mantissa_bits)) - 1) << mantissa_bits
    field = ops.where(field > infinite, infinite, field)
    field = ops.where(is_number(hi), field, infinite + (1 << (mantissa_bits - 1)))
    return ops.from_bits(ops.where(negative & is_number(hi), field - (1 << (width - 1)), field), dtype)


def cut(ops: Ops, x: Array, width: int) -> Array:
    """``x`` rounded to its leading ``width`` significant bits (ties away from zero)."""
    drop = 53 - width
    return ops.from_bits((ops.bits(x) + (1 << (drop - 1))) & (-1 << drop), "float64")


def halves(ops: Ops, x: Array) -> tuple[Array, Array]:
    """``x = high + low`` exactly, each of at most 26 significant bits, so that products of halves are exact.

    Rounding, not truncation: the low half of a truncated split has 27 bits, and the product of two such has 54.
    """
    high = cut(ops, x, 26)
    return high, x - high
