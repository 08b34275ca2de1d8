"""The few array operations the corruption schemes are written against, and NumPy's version of them.

What a twin does otherwise is in its ``corruption.py``. Arrays also use ``+ - * // %``, comparisons, ``& | ~`` on bools,
``>>`` on integers, and indexing by slices, None and NumPy arrays. All numbers are integers below 2^31, but for one
product of two float32 (``to_float``), which every framework rounds alike: so every framework gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from maskattn._arithmetic import negated, never
from maskattn.numerics import rng
from maskattn.typing import Traced as Array

Carry = TypeVar("Carry")

#: Random words have this many bits, so that they are not negative in int32.
BITS = 31


class Ops:
    """Array operations, here those of NumPy; the twins' are subclasses.

    Integers have the dtype of the framework's indices (JAX: int32, else int64).
    """

    #: the module of the array functions, that of the random numbers, and the dtype of integers
    xp: ModuleType = np
    rng: ModuleType = rng
    integer: Any = np.int64

    def key(self, key: Array) -> Array:
        """A key from a seed in [0, 2**31), from two uint32 words, or from what the framework calls a key."""
        return key if isinstance(key, np.ndarray) and key.ndim else rng.key(key)

    def fold_in(self, key: Array, data: Array) -> Array:
        """A key from a key and a number (an int, or traced), as ``rng.fold_in``."""
        return self.rng.fold_in(key, data)

    def words(self, key: Array, shape: Sequence[int]) -> Array:
        """``rng.bits(key, shape) >> 1`` as integers."""
        return (self.rng.bits(key, tuple(shape)) >> 1).astype(self.integer)

    def array(self, x: Array) -> Array:
        """Bools as they are, other numbers as integers."""
        x = self.xp.asarray(x)
        return x if x.dtype == bool else x.astype(self.integer)

    def to_float(self, x: Array) -> Array:
        """Integers, or a NumPy array, to float32."""
        return self.xp.asarray(x, self.xp.float32)

    def arange(self, n: int) -> Array:
        return self.xp.arange(n, dtype=self.integer)

    def zeros(self, shape: Sequence[int]) -> Array:
        """Integers."""
        return self.xp.zeros(tuple(shape), self.integer)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return self.xp.where(condition, x, y)

    def sort(self, x: Array) -> Array:
        """Along the last axis."""
        return self.xp.sort(x, axis=-1)

    def argsort(self, x: Array) -> Array:
        """Along the last axis, ties in order."""
        return np.argsort(x, axis=-1, kind="stable")

    def take_along(self, x: Array, index: Array) -> Array:
        """``x[..., index]``, row by row of the last axis."""
        return self.xp.take_along_axis(x, index, axis=-1)

    def cumsum(self, x: Array) -> Array:
        """Along the last axis, of integers or bools, as integers."""
        return self.xp.cumsum(x, -1, dtype=self.integer)

    def sum(self, x: Array, axes: int = 1) -> Array:
        """Over the last ``axes`` axes, of integers or bools, as integers."""
        return self.xp.sum(x, tuple(range(-axes, 0)), dtype=self.integer)

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Along the last axis."""
        return self.xp.concatenate(tuple(arrays), -1)

    def scan(self, step: Callable[[Carry, Array], tuple[Carry, Array]], carry: Carry, xs: Array) -> Array:
        """The results of ``carry, result = step(carry, x)`` for each x along the last axis, stacked there."""
        results = []
        for i in range(xs.shape[-1]):
            carry, result = step(carry, xs[..., i])
            results.append(result[..., None])
        return self.concatenate(results)

    def while_any(self, going: Callable[[Carry], Array], step: Callable[[Carry], Carry], state: Carry) -> Carry:
        """Repeat ``state = step(state)`` while any entry of ``going(state)`` is True."""
        while going(state).any():
            state = step(state)
        return state


NUMPY = Ops()


def chance(ops: Ops, key: Array, p: float, shape: Sequence[int]) -> Array:
    """``rng.bernoulli(key, p, shape)``."""
    return ops.words(key, shape) >> (BITS - 23) < rng.bernoulli_limit(p)


def rank(ops: Ops, values: Array) -> Array:
    """The place of each value among those of its row (last axis), from 0; of equal ones the first comes first."""
    return ops.argsort(ops.argsort(values))


def previous(ops: Ops, flags: Array, first: bool) -> Array:
    """Each flag of the row (last axis) moved one place on, `first` at the start."""
    nowhere = never(flags[..., :1])
    return ops.concatenate([negated(nowhere) if first else nowhere, flags[..., :-1]])


def indices(ops: Ops, keep: Array, size: int) -> tuple[Array, Array]:
    """Where each row is True, in order: int [..., size], filled up with 0, and how many those are, int [...]."""
    count = ops.sum(keep)
    order = ops.argsort(ops.where(keep, 0, 1))[..., :size]
    return ops.where(ops.arange(size) < count[..., None], order, 0), count
