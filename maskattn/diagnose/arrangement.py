"""Whether two arrays hold the same numbers, and which number of the one is which of the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskattn.arrays import dtype_named
from maskattn.typing import NumPyArray

#: What numbers are stored in, the finest first.
PRECISIONS = ("float32", "float16", "bfloat16")
#: Shorter rows, and those with fewer different numbers, may agree by chance.
_ROW = 8


def rounded(value: NumPyArray, precision: str) -> NumPyArray:
    """An array rounded to a dtype's numbers, in float64; "" rounds nothing. Zeros have no sign."""
    if precision:
        with np.errstate(over="ignore"):
            value = value.astype(dtype_named(precision)).astype(np.float64)
    return value + 0.0


@dataclass(frozen=True, eq=False)
class Whole:
    """An array, and what is found out about it once.

    Attributes:
        value: float64.
    """

    value: NumPyArray

    @cached_property
    def ordered(self) -> NumPyArray:
        """Its numbers in order."""
        return np.sort(self.value, axis=None)

    @cached_property
    def constant(self) -> bool:
        """Whether all its numbers are one."""
        return bool(self.ordered[0] == self.ordered[-1])

    def exact(self, precision: str) -> bool:
        """Whether a dtype holds its numbers."""
        return not precision or bool(np.array_equal(rounded(self.ordered, precision), self.ordered))

    def key(self, precision: str) -> tuple[int, int]:
        """The same for arrays that hold the same numbers."""
        return self.value.size, hash(rounded(self.ordered, precision).tobytes())


def arranged(one: NumPyArray, other: NumPyArray) -> tuple[str, NumPyArray]:
    """How two arrays of the same numbers are arranged, and the place in `other`, flat, of each number of `one`.

    The word is "equal", "reshaped", "transposed" or, where no exchange of axes does it, "in another order".
    """
    places = np.arange(one.size)
    if np.array_equal(one.ravel(), other.ravel()):
        return ("equal" if np.squeeze(one).shape == np.squeeze(other).shape else "reshaped"), places
    for axes in itertools.permutations(range(one.ndim if one.ndim <= 5 else 0)):
        if np.array_equal(one.transpose(axes).ravel(), other.ravel()):
            back = np.empty_like(places)
            back[places.reshape(one.shape).transpose(axes).ravel()] = places
            return "transposed", back
    for axes in itertools.permutations(range(other.ndim if other.ndim <= 5 else 0)):
        if np.array_equal(other.transpose(axes).ravel(), one.ravel()):
            return "transposed", places.reshape(other.shape).transpose(axes).ravel()
    back = np.empty_like(places)
    back[np.argsort(one, axis=None, kind="stable")] = np.argsort(other, axis=None, kind="stable")
    return "in another order", back


@dataclass(frozen=True, eq=False)
class Rows:
    """An array taken apart into rows, to find another one's rows among them.

    Attributes:
        name: which rows: "slabs of axis 0" or "vectors of axis 1".
        rows: float64 [rows, numbers of each].
        places: of each number in the array, flat; of the shape of `rows`.
        axis: along which a row's number counts, where it is one.
    """

    rows: NumPyArray
    places: NumPyArray
    axis: int | None

    @cached_property
    def keys(self) -> list[int]:
        """The same for rows of the same numbers."""
        return [hash(row.tobytes()) for row in np.sort(self.rows, axis=1)]

    @cached_property
    def numbers(self) -> dict[int, list[int]]:
        """Rows by their keys."""
        found: dict[int, list[int]] = {}
        for number, key in enumerate(self.keys):
            found.setdefault(key, []).append(number)
        return found

    @cached_property
    def telling(self) -> bool:
        """Whether its rows agree with no others by chance."""
        return self.rows.shape[1] >= _ROW and len(np.unique(self.rows[0])) >= _ROW


def apart(value: NumPyArray, whole: bool) -> Iterator[Rows]:
    """The ways to take an array apart.

    Args:
        whole: also as a single row.
    """
    places = np.arange(value.size).reshape(value.shape)
    if whole:
        yield Rows(value.reshape(1, -1), places.reshape(1, -1), None)
    if value.ndim < 2:
        return
    for axis, size in enumerate(value.shape):
        moved, at = np.moveaxis(value, axis, 0), np.moveaxis(places, axis, 0)
        yield Rows(moved.reshape(size, -1), at.reshape(size, -1), axis)
        if value.ndim > 2:
            yield Rows(moved.reshape(size, -1).T, at.reshape(size, -1).T, None)


def within(part: NumPyArray, fused: NumPyArray, rows: Sequence[Rows], nth: int = 0) -> tuple[str, NumPyArray] | None:
    """Where an array lies in a larger one, in words, and the place there, flat, of each of its numbers; None: nowhere.

    Args:
        rows: of the larger one. nth: which one to take where it holds the same numbers several times.
    """
    for mine in apart(part, True):
        if not mine.telling:
            continue
        for its in rows:
            if its.rows.shape[1] != mine.rows.shape[1] or any(key not in its.numbers for key in mine.keys):
                continue
            found = np.array([its.numbers[key][min(nth, len(its.numbers[key]) - 1)] for key in mine.keys])
            places = np.empty(part.size, np.int64)
            for at, number in zip(range(len(mine.rows)), found, strict=True):
                one, other, where = mine.rows[at], its.rows[number], its.places[number]
                if not np.array_equal(one, other):  # axes in another order, or at the least the same numbers
                    where = where[arranged(_slab(part, mine, at), _slab(fused, its, int(number)))[1]]
                places[mine.places[at]] = where
            return _said(found, its, len(its.rows)), places
    return _run(part, fused)


def _slab(value: NumPyArray, rows: Rows, number: int) -> NumPyArray:
    """A row in the shape that it has in its array, where it has one."""
    if rows.axis is not None:
        return np.take(value, number, rows.axis)
    return value if rows.rows.shape[1] == value.size else rows.rows[number]


def _run(part: NumPyArray, fused: NumPyArray) -> tuple[str, NumPyArray] | None:
    """Of a vector: a run of the larger one's numbers, or numbers of it that stand apart."""
    one, other = part.ravel(), fused.ravel()
    if one.size < 2 or len(np.unique(one)) < min(_ROW, one.size):
        return None
    for start in np.flatnonzero(other[: other.size - one.size + 1] == one[0]):
        if np.array_equal(other[start : start + one.size], one):
            return f"numbers {start} to {start + one.size - 1} of it", np.arange(start, start + one.size)
    order = np.argsort(other, kind="stable")
    places = np.minimum(np.searchsorted(other[order], one), other.size - 1)
    if one.size >= 2 * _ROW and np.array_equal(other[order][places], one) and len(np.unique(one)) == one.size:
        return "numbers of it that stand apart", order[places]
    return None


def _said(found: NumPyArray, rows: Rows, among: int) -> str:
    if rows.axis is None:
        return "rows of it"
    first, last = int(found.min()), int(found.max())
    if len(found) == 1:
        return f"number {first} of {among} along axis {rows.axis}"
    if last - first + 1 == len(found):
        return f"{first} to {last} of {among} along axis {rows.axis}"
    return f"{len(found)} of {among} along axis {rows.axis}, which stand apart"
