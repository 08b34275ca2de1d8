"""The normal distribution: its density and its tail, as pairs, the same bits in every framework.

The tail is the density times Mills' ratio m, which is a smooth function without a small number in it, so that a tail of
2^-140 is as right as one of 1/2. m is a table of steps of 1/64 with Taylor's series of each, made with ``decimal``.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache

from maskattn._arithmetic import constant
from maskattn.numerics.exact import pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.elementary import column, exp, product
from maskattn.numerics.exact.pair import Pair
from maskattn.typing import NumPyArray

#: From here on the density is below 2^-298, and counts as 0.
LARGEST = 20.5
_STEPS = 64
_ORDER = 7
_FINE = Context(prec=160)
_TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021164194988918461563")


def _last() -> Decimal:
    """m at ``LARGEST``, by Laplace's continued fraction 1 / (z + 1 / (z + 2 / (z + ...)))."""
    z = below = Decimal(LARGEST)
    for n in range(300, 0, -1):
        below = _FINE.add(z, _FINE.divide(Decimal(n), below))
    return _FINE.divide(Decimal(1), below)


def _series(z: Decimal, value: Decimal, order: int) -> list[Decimal]:
    """Taylor's coefficients of m at z, of m' = z m - 1."""
    made = [value, _FINE.subtract(_FINE.multiply(z, value), Decimal(1))]
    for k in range(1, order):
        rest = _FINE.add(_FINE.multiply(z, made[k]), made[k - 1])
        made.append(_FINE.divide(rest, Decimal(k + 1)))
    return made


@cache
def centre() -> tuple[float, float]:
    """1 / sqrt(2 pi), the density at 0, as a pair."""
    (hi,), (lo,) = column([_FINE.divide(Decimal(1), _FINE.sqrt(_TWO_PI))])
    return float(hi), float(lo)


@cache
def _tables() -> list[tuple[NumPyArray, NumPyArray]]:
    """Taylor's coefficients of m at every step: for each order a column."""
    count, step = int(LARGEST * _STEPS), Decimal(-1) / Decimal(_STEPS)
    value, rows = _last(), []
    for n in range(count, -1, -1):
        made = _series(Decimal(n) / Decimal(_STEPS), value, 40)
        rows.append(made[: _ORDER + 1])
        value = made[-1]
        for c in reversed(made[:-1]):
            value = _FINE.add(_FINE.multiply(value, step), c)
    return [column([row[k] for row in reversed(rows)]) for k in range(_ORDER + 1)]


def normal(ops: Ops, size: Array) -> tuple[Pair, Pair]:
    """The density at ``size`` >= 0 and the probability of more, to some 2^-62; 0 where the density is below 2^-298."""
    columns, (hi, lo) = _tables(), centre()
    z = ops.where(size < LARGEST, size, LARGEST)
    square = pair.multiply(ops, pair.exactly(z), pair.exactly(z))
    density = exp(ops, Pair(square.hi * -0.5, square.lo * -0.5))
    density = pair.multiply(ops, density, Pair(constant(hi, z), constant(lo, z)))
    index = ops.floor(z * float(_STEPS) + 0.5)
    h = z - index * (1 / _STEPS)  # exact
    place = ops.to_int(index)
    first, second = (Pair(ops.take(table, place), ops.take(rest, place)) for table, rest in columns[:2])
    tail = ops.take(columns[-1][0], place)
    for table, _ in reversed(columns[2:-1]):
        tail = product(ops, tail, h) + ops.take(table, place)
    ratio = pair.add(first, pair.multiply(ops, second, pair.exactly(h)))
    ratio = pair.add(ratio, pair.exactly(product(ops, product(ops, h, h), tail)))
    return density, pair.multiply(ops, density, ratio)
