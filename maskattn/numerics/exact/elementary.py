"""exp, log and tanh of pairs, to some 2^-66, the same bits in every framework.

Range reduction by tables of 256 entries, then a short polynomial (Tang 1989, "Table-driven implementation of the
exponential function", ACM TOMS 15(2)). The tables are made with ``decimal``, whose exp and ln are correctly rounded
by specification.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache

import numpy as np

from maskattn._arithmetic import constant
from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair
from maskattn.typing import NumPyArray

#: exp gives 0 below this (2^-298.6): far below what a softmax weight can add to a float32, and far above underflow
EXP_CUT = -207.0
_STEPS = 256


def parts(x: Decimal, widths: tuple[int, ...]) -> tuple[float, ...]:
    """A positive number as float64 terms of the given significant bits, by truncation."""
    terms = []
    for width in widths:
        mantissa, exponent = np.frexp(float(x))
        term = float(np.ldexp(np.floor(np.ldexp(mantissa, width)), int(exponent) - width))
        terms.append(term)
        x = Context(prec=60).subtract(x, Decimal(term))
    return tuple(terms)


def column(values: list[Decimal]) -> tuple[NumPyArray, NumPyArray]:
    """Numbers as two columns of float64, whose sums they are."""
    hi = np.array([float(v) for v in values])
    lo = np.array([float(Context(prec=60).subtract(v, Decimal(float(v)))) for v in values])
    return hi, lo


@cache
def _exp_tables() -> tuple[NumPyArray, NumPyArray, tuple[float, ...], float]:
    context = Context(prec=60)
    ln2 = context.ln(Decimal(2))
    step = context.divide(ln2, Decimal(_STEPS))
    hi, lo = column([context.exp(context.multiply(step, Decimal(j))) for j in range(_STEPS)])
    inverse = float(np.ldexp(np.floor(np.ldexp(float(context.divide(Decimal(_STEPS), ln2)), 17)), -17))  # 26 bits
    return hi, lo, parts(step, (33, 33, 26)), inverse


@cache
def _log_tables() -> tuple[NumPyArray, NumPyArray, tuple[float, ...]]:
    context = Context(prec=60)
    hi, lo = column([context.ln(Decimal(1) + Decimal(j) / Decimal(_STEPS)) for j in range(_STEPS + 1)])
    return hi, lo, parts(context.ln(Decimal(2)), (40, 40, 26))


def product(ops: Ops, x: Array, y: Array) -> Array:
    """One float64 product, rounded after its exact parts were summed: within an ulp, and the same everywhere."""
    a, b = bits.halves(ops, x)
    c, d = bits.halves(ops, y)
    return a * c + ((a * d + b * c) + b * d)


def horner(ops: Ops, x: Array, coefficients: list[float]) -> Array:
    """``c[0] + c[1] x + ...`` in float64."""
    result = constant(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        result = product(ops, result, x) + c
    return result


def exp(ops: Ops, x: Pair) -> Pair:
    """e^x for x <= 0; exactly 1 at 0, exactly 0 below ``EXP_CUT``, NaN for NaN. Relative error below 2^-64."""
    table_hi, table_lo, step, inverse = _exp_tables()
    kept = x.hi >= EXP_CUT
    other = ops.where(x.hi == x.hi, 0.0, x.hi)
    x = pair.where(ops, kept, x, 0.0)
    n = ops.floor(bits.cut(ops, x.hi, 26) * inverse + 0.5)  # an exact product: fused or not, n is the same
    # n has 17 bits and the parts of the step at most 33: exact products, and the first difference is exact
    r = pair.two_sum(x.hi - n * step[0], -(n * step[1]))
    r = pair.add(r, Pair(x.lo - n * step[2], x.lo * 0.0))
    square = product(ops, r.hi, r.hi)
    tail = product(ops, square, horner(ops, r.hi, [1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720]))
    power = pair.two_sum(constant(1.0, r.hi), r.hi)
    power = pair.two_sum(power.hi, power.lo + (r.lo + tail))
    index = ops.to_int(n)
    step_power = Pair(ops.take(table_hi, index & (_STEPS - 1)), ops.take(table_lo, index & (_STEPS - 1)))
    result = pair.multiply(ops, power, step_power)
    scale = bits.power_of_two(ops, index >> 8)
    return pair.where(ops, kept, Pair(result.hi * scale, result.lo * scale), other)


def log(ops: Ops, x: Pair) -> Pair:
    """ln x for x in [2^-900, 2^900]; exactly 0 at 1, NaN elsewhere. Absolute error below 2^-64 max(1, |ln x|)."""
    table_hi, table_lo, ln2 = _log_tables()
    inside = (x.hi >= 2.0**-900) & (x.hi <= 2.0**900)
    x = pair.where(ops, inside, x, 1.0)
    exponent = (ops.bits(x.hi) >> 52) - 1023
    scale = bits.power_of_two(ops, -exponent)
    f = Pair(x.hi * scale, x.lo * scale)  # in [1, 2)
    index = ops.floor((f.hi - 1.0) * float(_STEPS) + 0.5)
    center = index * (1 / _STEPS) + 1.0  # exact
    z = pair.divide(ops, pair.add(f, Pair(-center, center * 0.0)), pair.exactly(center))
    square = product(ops, z.hi, z.hi)
    tail = product(ops, square, horner(ops, z.hi, [-1 / 2, 1 / 3, -1 / 4, 1 / 5, -1 / 6, 1 / 7]))
    e = ops.to_float(exponent)
    whole = pair.add(pair.two_sum(e * ln2[0], e * ln2[1]), Pair(e * ln2[2], e * 0.0))
    position = ops.to_int(index)
    whole = pair.add(whole, Pair(ops.take(table_hi, position), ops.take(table_lo, position)))
    return pair.where(ops, inside, pair.add(whole, pair.two_sum(z.hi, z.lo + tail)), float("nan"))


def tanh(ops: Ops, x: Pair) -> tuple[Pair, Pair]:
    """tanh x and its derivative 1 - tanh^2 x, from e^(-2|x|). Absolute error below 2^-63."""
    below = x.hi < 0
    size = Pair(ops.where(below, x.hi, -x.hi) * 2.0, ops.where(below, x.lo, -x.lo) * 2.0)
    e = exp(ops, size)
    one = Pair(constant(1.0, e.hi), e.hi * 0.0)
    above = pair.add(one, e)
    value = pair.divide(ops, pair.add(one, pair.negative(e)), above)
    slope = pair.divide(ops, Pair(e.hi * 4.0, e.lo * 4.0), pair.multiply(ops, above, above))
    return Pair(ops.where(below, -value.hi, value.hi), ops.where(below, -value.lo, value.lo)), slope
