"""A whole mask as one array, each part on only the axes that it reads."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

from maskattn._fields import Array
from maskattn.masks._base import Mask, grid
from maskattn.masks.algebra import And, Not, Or
from maskattn.masks.dense import Dense


def evaluate(mask: Mask, shape: tuple[int, ...], arange: Callable[[int], Array]) -> Array:
    """bool, rank 4, broadcastable to `shape` [batch, heads, q_len, kv_len], with sizes already settled.

    `arange` makes index arrays of the framework that the mask's data are of. A Dense array is used as it is: looking
    up each of its entries would copy it.
    """
    if isinstance(mask, Dense):
        return mask.keep.reshape(mask.shape)
    if isinstance(mask, And):
        return functools.reduce(operator.and_, [evaluate(part, shape, arange) for part in mask.parts])
    if isinstance(mask, Or):
        return functools.reduce(operator.or_, [evaluate(part, shape, arange) for part in mask.parts])
    if isinstance(mask, Not):
        return evaluate(mask.part, shape, arange) ^ True
    return mask.allowed(*grid(mask.depends, shape, arange))
