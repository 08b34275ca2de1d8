"""Sine and cosine to some 2^-68, the same bits in every framework.

The angle less a multiple of pi / 2 (Cody and Waite 1980, "Software manual for the elementary functions"), then a table
of steps of 1/256 and short polynomials, as in ``elementary.py``; tables are made with ``decimal``.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.elementary import column, horner, parts, product
from maskattn.numerics.exact.pair import Pair
from maskattn.typing import NumPyArray

#: Beyond this size of an angle the multiple of pi / 2 would have too many bits: sine and cosine are NaN there.
LARGEST = 2.0**31
_STEPS = 256
_REACH = 203  # steps from 0 to beyond pi / 4
_FINE = Context(prec=70)


def _series(x: Decimal, first: Decimal, start: int) -> Decimal:
    """first - first x^2 / ((start + 1) (start + 2)) + ...: the sine of x where first is x and start 1, or the cosine
    where first is 1 and start 0.
    """
    square = _FINE.minus(_FINE.multiply(x, x))  # a bare minus would round to 28 digits
    total = term = first
    for n in range(start, start + 60, 2):
        term = _FINE.divide(_FINE.multiply(term, square), Decimal((n + 1) * (n + 2)))
        total = _FINE.add(total, term)
    return total


def _half_pi() -> Decimal:
    """By Machin's formula, pi / 4 = 4 arctan(1/5) - arctan(1/239)."""

    def arctan(inverse: int) -> Decimal:
        power = total = _FINE.divide(Decimal(1), Decimal(inverse))
        for n in range(3, 103, 2):
            power = _FINE.divide(power, Decimal(-(inverse**2)))
            total = _FINE.add(total, _FINE.divide(power, Decimal(n)))
        return total

    return _FINE.multiply(2, _FINE.subtract(_FINE.multiply(4, arctan(5)), arctan(239)))


@cache
def _circle() -> tuple[tuple[float, ...], tuple[float, float]]:
    """pi / 2 in parts of 22 bits, whose products with 31 bits are exact, and 2 / pi as a pair."""
    half_pi = _half_pi()
    hi, lo = column([_FINE.divide(Decimal(1), half_pi)])
    return parts(half_pi, (22,) * 7), (float(hi[0]), float(lo[0]))


@cache
def _tables() -> tuple[NumPyArray, ...]:
    """Sine and cosine of j / 256 for j from -203 to 203, each as two columns."""
    steps = [Decimal(j) / Decimal(_STEPS) for j in range(-_REACH, _REACH + 1)]
    return *column([_series(x, x, 1) for x in steps]), *column([_series(x, Decimal(1), 0) for x in steps])


def sine_cosine(ops: Ops, angle: Array) -> tuple[Pair, Pair]:
    """sin and cos of a float64 ``angle`` of at most 24 significant bits. Relative errors below 2^-66; NaN where the
    angle is not finite, or its size at least ``LARGEST``.
    """
    half_pi, inverse = _circle()
    inside = ops.absolute(angle) < LARGEST
    x = ops.where(inside, angle, 0.0)
    turns = pair.multiply(ops, pair.exactly(x), Pair(x * 0.0 + inverse[0], x * 0.0 + inverse[1]))
    n = ops.floor(turns.hi + 0.5)
    r = pair.exactly(x)
    for part in half_pi:
        r = pair.add(r, pair.exactly(-(n * part)))
    sine, cosine = _near_zero(ops, r)
    quadrant = ops.to_int(n) & 3
    odd = (quadrant & 1) == 1
    sine, cosine = pair.choose(ops, odd, cosine, sine), pair.choose(ops, odd, sine, cosine)
    sine = pair.choose(ops, quadrant >= 2, pair.negative(sine), sine)
    cosine = pair.choose(ops, (quadrant == 1) | (quadrant == 2), pair.negative(cosine), cosine)
    return pair.where(ops, inside, sine, bits.NAN), pair.where(ops, inside, cosine, bits.NAN)


def _near_zero(ops: Ops, r: Pair) -> tuple[Pair, Pair]:
    """sin and cos of an angle within 203 / 256 of 0, by those of the nearest step and of what is left."""
    step = ops.floor(r.hi * float(_STEPS) + 0.5)
    position = ops.to_int(step) + _REACH
    sin_hi, sin_lo, cos_hi, cos_lo = (ops.take(table, position) for table in _tables())
    sin_step, cos_step = Pair(sin_hi, sin_lo), Pair(cos_hi, cos_lo)
    rest = pair.add(r, pair.exactly(-(step * (1 / _STEPS))))
    square = product(ops, rest.hi, rest.hi)
    cubic = product(ops, product(ops, rest.hi, square), horner(ops, square, [-1 / 6, 1 / 120, -1 / 5040]))
    sin_rest = pair.two_sum(rest.hi, rest.lo + cubic)
    below_one = product(ops, square, horner(ops, square, [-1 / 2, 1 / 24, -1 / 720, 1 / 40320]))  # cos - 1
    of_sine = pair.exactly(product(ops, sin_hi, below_one))
    of_cosine = pair.exactly(product(ops, cos_hi, below_one))
    sine = pair.add(sin_step, pair.add(pair.multiply(ops, cos_step, sin_rest), of_sine))
    cosine = pair.add(cos_step, pair.add(pair.negative(pair.multiply(ops, sin_step, sin_rest)), of_cosine))
    return sine, cosine
