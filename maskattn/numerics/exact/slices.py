"""Exact matrix products by a framework's own: of slices so short that no sum of their products is ever rounded.

After Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication by using fast routines of
matrix multiplication and its applications" (2012). Each row of the left side, and each column of the right one, is cut
into multiples of a unit of its own, the largest numbers first. A product of two slices is then a matrix of integers
below 2^53 times a unit: whatever the order in which a library adds, and whether it fuses, its bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair


def _cleaned(ops: Ops, x: Array) -> tuple[Array, Array]:
    finite = ops.isfinite(x)
    return ops.where(finite, x, 0.0), ~finite


def _reach(ops: Ops, x: Array) -> Array:
    """The power of two above the largest number of each row [.., M, C] -> [.., M, 1]; where all are 0, 1."""
    largest = ops.max(ops.absolute(x))
    exponent = ((ops.bits(largest) >> 52) & 0x7FF) - 1022
    return ops.where(largest == 0.0, 1.0, bits.power_of_two(ops, exponent))


def _slice(x: Array, reach: Array, width: int) -> Array:
    """The multiples of reach * 2^-width nearest to x, which is at most reach in size."""
    above = reach * (1.5 * 2.0 ** (52 - width))  # exact; a sum with it has the unit as its last bit
    return (x + above) - above


def matmul(ops: Ops, a: Array, b: Array) -> Pair:
    """``a @ b``, [.., M, C] and [.., C, N], of widened numbers of at most 24 bits, to some 2^-100 of the terms' size.

    As many slices are made as the numbers have. What is not finite makes its row, or its column, NaN.
    """
    count = a.shape[-1]
    width = (53 - max(count - 1, 1).bit_length()) // 2
    (a, bad_a), (b, bad_b) = _cleaned(ops, a), _cleaned(ops, b)
    reach_a = _reach(ops, a)
    reach_b = ops.moveaxis(_reach(ops, ops.moveaxis(b, -1, -2)), -1, -2)
    shorter = 2.0 ** -(width + 1)
    start = ops.zeros((*a.shape[:-1], b.shape[-1]), like=a)

    def each_left(carry: Sequence[Array]) -> Sequence[Array]:
        left, reach, hi, lo = carry
        part = _slice(left, reach, width)

        def each_right(carry: Sequence[Array]) -> Sequence[Array]:
            right, reach, hi, lo = carry
            other = _slice(right, reach, width)
            total, lost = pair.two_sum(hi, ops.matmul(part, other))
            return right - other, reach * shorter, total, lo + lost

        _, _, hi, lo = ops.loop(each_right, (b, reach_b, hi, lo))
        return left - part, reach * shorter, hi, lo

    _, _, hi, lo = ops.loop(each_left, (a, reach_a, start, start))
    spoiled = ops.any(bad_a, -1) | ops.any(bad_b, -2)
    return pair.two_sum(ops.where(spoiled, bits.NAN, hi), lo)
