"""The few array operations the exact arithmetic is written against, and NumPy's version of them.

Each twin has its own version in ``kernels/exact/ops.py``. Arrays also use ``+ - * /``, comparisons, ``& | ~`` on
booleans and integers, ``<< >>`` on integers, indexing with None, and ``.shape``; all of these round correctly or are
exact, and are the same in every framework. Nothing here rounds, but for the division and the additions done on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import ml_dtypes
import numpy as np

from maskattn.typing import NumPyArray, Traced as Array

Carry = TypeVar("Carry")

#: bits of the stored mantissa, exponent bias and width in bits of the floating types
FORMATS: dict[str, tuple[int, int, int]] = {
    "float64": (52, 1023, 64),
    "float32": (23, 127, 32),
    "bfloat16": (7, 127, 16),
    "float16": (10, 15, 16),
}


class Ops(Protocol):
    """Array operations of one framework, on float64, int64 and bool arrays unless stated."""

    #: the most results a matrix product works on at a time, so that they stay in the cache; None where a compiler cares
    limit: int | None
    #: whether casts from float32 and narrower to float64, and from float64 to float32, are right for subnormals too
    casts: bool

    def bits(self, x: Array) -> Array:
        """The bit pattern of a floating array of any type in ``FORMATS``, as int64 (sign-extended)."""

    def from_bits(self, x: Array, dtype: str) -> Array:
        """The inverse of ``bits``: the low bits of an int64 array as floating type ``dtype``."""

    def dtype(self, x: Array) -> str:
        """The name of a floating type, a key of ``FORMATS``."""

    def to_int(self, x: Array) -> Array:
        """float64 with integral values to int64."""

    def to_float(self, x: Array) -> Array:
        """int64 (below 2^53), bool or, where ``casts``, a floating type to float64, exactly."""

    def to_float32(self, x: Array) -> Array:
        """float64 to float32, rounded once, where ``casts``."""

    def floor(self, x: Array) -> Array: ...
    def absolute(self, x: Array) -> Array: ...
    def isfinite(self, x: Array) -> Array: ...
    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array: ...
    def max(self, x: Array) -> Array:
        """Largest entry along the last axis, which is kept; -inf where that axis is empty."""

    def any(self, x: Array, axis: int) -> Array:
        """Whether any entry along the axis, which is kept, is True."""

    def take(self, table: NumPyArray, index: Array) -> Array:
        """``table[index]`` of a one-dimensional float64 NumPy table, indices in range."""

    def constants(self, values: NumPyArray, like: Array) -> Array:
        """A float64 NumPy array, where ``like`` lives."""

    def meet(self, a: Array, b: Array) -> Array:
        """Bool [..., M, C] and [..., C, N] -> [..., M, N]: whether any c has both (a matrix product of 0 and 1)."""

    def matmul(self, a: Array, b: Array) -> Array:
        """The framework's own product of float64 [..., M, C] and [..., C, N], which rounds as it likes."""

    def rows(self, table: Array, index: Array) -> Array:
        """``table[index]`` of a table of any type [R, W] and integers in range [...] -> [..., W]."""

    def first(self, index: Array, count: int) -> Array:
        """For each of the integers [N], all below ``count``, the first place that has the same: int64 [N]."""

    def put(self, x: Array, index: Array, rows: Array) -> Array:
        """``x`` with its rows at ``index`` replaced, those of an equal index by equal ones; ``x`` is not used again."""

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array: ...
    def broadcast(self, x: Array, shape: Sequence[int]) -> Array: ...
    def reshape(self, x: Array, shape: Sequence[int]) -> Array: ...
    def moveaxis(self, x: Array, source: int, target: int) -> Array: ...
    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        """float64 zeros, where ``like`` lives."""

    def zeros_like(self, x: Array) -> Array:
        """Zeros of the shape and the type of ``x``, which nothing else has."""

    def scan(self, step: Callable[[Carry, tuple[Array, ...]], Carry], carry: Carry, xs: Sequence[Array]) -> Carry:
        """``for row in zip(*xs): carry = step(carry, row)``, along the leading axes, in order."""

    def loop(self, step: Callable[[Sequence[Array]], Sequence[Array]], carry: Sequence[Array]) -> Sequence[Array]:
        """``while any(carry[0] != 0): carry = step(carry)``."""


class NumpyOps:
    """The operations in NumPy."""

    limit: int | None = 1 << 15
    casts = True

    def bits(self, x: Array) -> Array:
        width = FORMATS[self.dtype(x)][2]
        return np.ascontiguousarray(x).view(f"int{width}").reshape(x.shape).astype(np.int64)

    def from_bits(self, x: Array, dtype: str) -> Array:
        narrow = x.astype(f"int{FORMATS[dtype][2]}")
        return narrow.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    def dtype(self, x: Array) -> str:
        return str(x.dtype)

    def to_int(self, x: Array) -> Array:
        return x.astype(np.int64)

    def to_float(self, x: Array) -> Array:
        return x.astype(np.float64)

    def to_float32(self, x: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is infinite, as everywhere
            return x.astype(np.float32)

    def floor(self, x: Array) -> Array:
        return np.floor(x)

    def absolute(self, x: Array) -> Array:
        return np.abs(x)

    def isfinite(self, x: Array) -> Array:
        return np.isfinite(x)

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        return np.where(condition, x, y)

    def max(self, x: Array) -> Array:
        return x.max(axis=-1, keepdims=True, initial=-np.inf)

    def any(self, x: Array, axis: int) -> Array:
        return x.any(axis=axis, keepdims=True)

    def take(self, table: NumPyArray, index: Array) -> Array:
        return table[index]

    def constants(self, values: NumPyArray, like: Array) -> Array:
        return values

    def meet(self, a: Array, b: Array) -> Array:
        return a.astype(np.float32) @ b.astype(np.float32) > 0

    def matmul(self, a: Array, b: Array) -> Array:
        return a @ b

    def rows(self, table: Array, index: Array) -> Array:
        return table[index]

    def first(self, index: Array, count: int) -> Array:
        places = np.full(count, len(index))
        np.minimum.at(places, index, np.arange(len(index)))
        return places[index]

    def put(self, x: Array, index: Array, rows: Array) -> Array:
        x[index] = rows
        return x

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.concatenate(arrays, axis)

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(x, tuple(shape))

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def moveaxis(self, x: Array, source: int, target: int) -> Array:
        return np.moveaxis(x, source, target)

    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        return np.zeros(tuple(shape))

    def zeros_like(self, x: Array) -> Array:
        return np.zeros_like(x)

    def scan(self, step: Callable[[Carry, tuple[Array, ...]], Carry], carry: Carry, xs: Sequence[Array]) -> Carry:
        for row in zip(*xs, strict=True):
            carry = step(carry, row)
        return carry

    def loop(self, step: Callable[[Sequence[Array]], Sequence[Array]], carry: Sequence[Array]) -> Sequence[Array]:
        while carry[0].any():
            carry = step(carry)
        return carry
