"""u * span + low rounded once, on float64 arrays of NumPy or PyTorch: what a processor's fused multiply-add gives.

After Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd"
(2008): the lesser part of the exact result is rounded to odd before the last addition.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from maskattn._arithmetic import constant
from maskattn.typing import Traced as Array

_HALF = -(1 << 27)


def multiply_add(xp: ModuleType, u: Array, span: float, low: float, *, wide: bool) -> Array:
    """u * span + low of a float64 array and two numbers: rounded once where the inputs are `wide` (float64); else they
    have at most 24 bits, and the result is rounded to odd: casting it to float32 rounds it once.

    Args:
        xp: numpy or torch.
    """
    if not wide:
        return _round_to_odd(xp, *_two_sum(u * span, constant(low, u)))  # the product is exact
    product, rest = _two_product(xp, u, span)
    middle, last = _two_sum(constant(low, u), rest)
    total, tail = _two_sum(product, middle)
    return total + _round_to_odd(xp, *_two_sum(last, tail))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b as its rounded value and what rounding lost (Knuth)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def _two_product(xp: ModuleType, a: Array, b: float) -> tuple[Array, Array]:
    """a * b as its rounded value and what rounding lost (Dekker), with halves cut by bit mask."""
    a_high = (a.view(xp.int64) & _HALF).view(xp.float64)
    b_high = float((np.asarray(b).view(np.int64) & _HALF).view(np.float64))
    a_low, b_low = a - a_high, b - b_high
    product = a * b
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _round_to_odd(xp: ModuleType, total: Array, tail: Array) -> Array:
    """total + tail, an inexact sum being whichever float64 neighbour has an odd last bit."""
    pattern = total.view(xp.int64)
    away = (tail > 0) == (total > 0)
    moved = xp.where(away, pattern + 1, pattern - 1)
    return xp.where((tail != 0) & (pattern & 1 == 0), moved, pattern).view(xp.float64)
