"""Arithmetic on unevaluated sums ``hi + lo`` of two float64 (some 100 bits), in which no product is ever rounded.

A compiler may fuse a multiplication into the addition that follows it. Where the product is exact this changes
nothing, so every factor below has been cut to so few bits that its product fits float64. Sums are Knuth's two-sum, of
additions only (Ogita, Rump and Oishi 2005, "Accurate sum and dot product", SIAM J. Sci. Comput. 26(6), algorithms 3.1
and 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from maskattn._arithmetic import constant
from maskattn.numerics.exact import bits
from maskattn.numerics.exact._ops import FORMATS, Array, Ops


class Pair(NamedTuple):
    """The number ``hi + lo``, ``|lo|`` at most half an ulp of ``hi``."""

    hi: Array
    lo: Array


def exactly(x: Array) -> Pair:
    """A float64 as a pair. Its low half is NaN where it is not finite, and so is all that is computed with it."""
    return Pair(x, x * 0.0)


def two_sum(a: Array, b: Array) -> Pair:
    """``a + b`` exactly."""
    total = a + b
    b_kept = total - a
    return Pair(total, (a - (total - b_kept)) + (b - b_kept))


def _fast_two_sum(a: Array, b: Array) -> Pair:
    """``a + b`` exactly where ``|a| >= |b|`` or a is 0."""
    total = a + b
    return Pair(total, b - (total - a))


def add(x: Pair, y: Pair) -> Pair:
    """``x + y``, to some 2^-100 of the larger."""
    total = two_sum(x.hi, y.hi)
    return _fast_two_sum(total.hi, total.lo + (x.lo + y.lo))


def negative(x: Pair) -> Pair:
    """``-x``."""
    return Pair(-x.hi, -x.lo)


def where(ops: Ops, condition: Array, x: Pair, hi: Array | float) -> Pair:
    """``x`` where the condition holds, the float64 ``hi`` elsewhere."""
    return Pair(ops.where(condition, x.hi, hi), ops.where(condition, x.lo, 0.0))


def choose(ops: Ops, condition: Array, x: Pair, y: Pair) -> Pair:
    """``x`` where the condition holds, ``y`` elsewhere."""
    return Pair(ops.where(condition, x.hi, y.hi), ops.where(condition, x.lo, y.lo))


def widen(ops: Ops, x: Array) -> Pair:
    """An array of any floating type as a pair, exactly."""
    return exactly(bits.widen(ops, x))


def multiply(ops: Ops, x: Pair, y: Pair) -> Pair:
    """``x * y`` with a relative error below 2^-75."""
    a, b = bits.halves(ops, x.hi)
    c, d = bits.halves(ops, y.hi)
    first = two_sum(a * c, a * d)
    second = two_sum(first.hi, b * c)
    rest = bits.cut(ops, x.lo, 26) * c + bits.cut(ops, y.lo, 26) * a
    return _fast_two_sum(second.hi, first.lo + second.lo + (b * d + rest))


def scaled(ops: Ops, x: Pair, factor: float) -> Pair:
    """``x`` times a float64 constant."""
    return multiply(ops, x, exactly(constant(factor, x.hi)))


def divide(ops: Ops, x: Pair, y: Pair) -> Pair:
    """``x / y`` with a relative error below 2^-75; exact where the quotient fits float64."""
    quotient = x.hi / y.hi
    product = multiply(ops, exactly(quotient), y)
    rest = (x.hi - product.hi) + (x.lo - product.lo)
    return _fast_two_sum(quotient, rest / y.hi)


def root(ops: Ops, x: Pair) -> Pair:
    """The square root of ``x`` >= 0, with a relative error below 2^-70; 0 at 0, NaN below it.

    Heron's rule from a start within 7 %, then one step on pairs: no framework's ``sqrt``, since PyTorch's vectorised
    one is an ulp off in one case of eighty.
    """
    zero = x.hi == 0.0
    y = where(ops, ~zero, x, 1.0)
    s = ops.from_bits((ops.bits(y.hi) >> 1) + (1023 << 51), "float64")  # half of the exponent
    for _ in range(4):
        s = (s + y.hi / s) * 0.5
    square = multiply(ops, exactly(s), exactly(s))
    rest = (y.hi - square.hi) + (y.lo - square.lo)
    result = _fast_two_sum(s, rest / (s + s))
    hi = ops.where(y.hi < 0.0, bits.NAN, ops.where(zero, 0.0, result.hi))
    return Pair(hi, ops.where(zero, 0.0, result.lo))


def total(ops: Ops, x: Pair, axis: int) -> Pair:
    """The sum along an axis (kept, at size 1), term after term."""

    def step(carry: Pair, row: Sequence[Array]) -> Pair:
        hi, lost = two_sum(carry[0], row[0])
        return Pair(hi, carry[1] + (lost + row[1]))

    hi, lo = ops.moveaxis(x.hi, axis, 0), ops.moveaxis(x.lo, axis, 0)
    start = ops.zeros(hi.shape[1:], like=x.hi)
    result = two_sum(*ops.scan(step, Pair(start, start), (hi, lo)))
    return Pair(ops.moveaxis(result.hi[None], 0, axis), ops.moveaxis(result.lo[None], 0, axis))


def total_to(ops: Ops, x: Pair, shape: Sequence[int]) -> Pair:
    """The sum along the axes where ``shape``, of the same rank, has size 1 and ``x`` has not: first axis first."""
    for axis, (n, full) in enumerate(zip(shape, x.hi.shape, strict=True)):
        if n == 1 and full != 1:
            x = total(ops, x, axis)
    return x


def input_pieces(ops: Ops, x: Array, dtype: str) -> list[Array]:
    """A widened input of type ``dtype`` as float64 terms, largest first: itself (at most 24 bits), or the halves of a
    float64.
    """
    return list(bits.halves(ops, x)) if dtype == "float64" else [x]


def pieces(ops: Ops, x: Pair, dtype: str) -> list[Array]:
    """A pair as two terms, short enough that their products with the ``input_pieces`` of ``dtype`` are exact.

    29 + 29 bits beside 24 (a relative error of 2^-59), 27 + 27 beside the 26 of a half of a float64.
    """
    width = 27 if dtype == "float64" else 53 - 1 - FORMATS["float32"][0]
    hi = ops.where(ops.absolute(x.hi) < bits.SMALLEST, 0.0, x.hi)
    first = bits.cut(ops, hi, width)
    return [first, bits.cut(ops, (hi - first) + ops.where(hi == 0.0, 0.0, x.lo), width)]


def matmul(ops: Ops, a: Sequence[Array], b: Sequence[Array]) -> Pair:
    """``sum(a) @ sum(b)`` of two lists of terms, largest first, [..., M, C] and [..., C, N]: along C term after term.

    Products of terms must be exact (see ``pieces``). A term of 0 leaves every bit of the sum as it was, wherever it
    stands: this is what makes a padded, packed or sliced batch give the bits of its parts.
    """
    if ops.limit is None:
        return _matmul(ops, a, b)
    shape = (*a[0].shape[:-1], b[0].shape[-1])
    axis = max(range(len(shape) - 1), key=lambda i: shape[i])
    if math.prod(shape) <= ops.limit or shape[axis] < 2:
        return _matmul(ops, a, b)
    halves = []
    for part in (slice(None, shape[axis] // 2), slice(shape[axis] // 2, None)):
        index = (slice(None),) * axis + (part,)
        halves.append(matmul(ops, [x[index] for x in a], [x[index] for x in b] if axis < len(shape) - 2 else b))
    return Pair(*(ops.concatenate(parts, axis) for parts in zip(*halves, strict=True)))


def _matmul(ops: Ops, a: Sequence[Array], b: Sequence[Array]) -> Pair:
    def step(carry: Pair, row: Sequence[Array]) -> Pair:
        left, right = row[: len(a)], row[len(a) :]
        hi, lost = two_sum(carry[0], left[0] * right[0])
        lo = carry[1] + lost
        for i, x in enumerate(left):
            for j, y in enumerate(right):
                if i + j:
                    lo = lo + x * y
        return Pair(hi, lo)

    columns = [ops.moveaxis(x, -1, 0)[..., None] for x in a]
    rows = [ops.moveaxis(x, -2, 0)[..., None, :] for x in b]
    start = ops.zeros((*a[0].shape[:-1], b[0].shape[-1]), like=a[0])
    return two_sum(*ops.scan(step, Pair(start, start), (*columns, *rows)))
