"""Reading the arrays of other libraries value by value."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from maskattn._fields import Array, dtype_name, peek, to_numpy
from maskattn._pairs import AXES
from maskattn._problems import Problems, describe
from maskattn.masks._core import Mask, evaluate

_KINDS = {"bool": "bool", "int": "int", "uint": "int", "float": "float", "bfloat": "float"}


def kind_of(array: Array) -> str:
    """ "bool", "int", "float", or the name of any other dtype."""
    name = dtype_name(array)
    return _KINDS.get(name.rstrip("0123456789"), name)


def as_array(problems: Problems, name: str, value: Any, kinds: tuple[str, ...], ranks: dict[int, str]) -> Array | None:
    """`value` as an array whose values can be read, of one of these kinds and ranks; None where a fault was noted."""
    array = np.array(value) if not hasattr(value, "dtype") or isinstance(value, (np.ndarray, np.generic)) else value
    before = len(problems.reasons)
    if kind_of(array) not in kinds:
        problems.type(f"{name} must be of dtype {' or '.join(kinds)}, got {describe(array)}")
    if len(array.shape) not in ranks:
        problems.value(f"{name} must be {' or '.join(dict.fromkeys(ranks.values()))}, got shape {list(array.shape)}")
    if kind_of(array) != "bool" and peek(array) is None:
        instead = f", or give {name} as bool" if "bool" in kinds else ""
        problems.value(f"{name} is traced, and its values must be read: import it outside jit{instead}")
    return array if len(problems.reasons) == before else None


def is_one(problems: Problems, name: str, array: Array) -> Array:
    """Where a bool array, or one of 0 and 1, is 1; any other value is a fault."""
    if kind_of(array) == "bool":
        return array
    values = to_numpy(array)
    refuse_other(problems, name, values, (values == 0) | (values == 1), "0 or 1")
    return array == 1


def is_zero(problems: Problems, name: str, bias: Array, drop_at: float | None = None) -> Array:
    """Where an additive mask is 0; elsewhere it must be -inf, the minimum of its dtype, or `drop_at`."""
    values = to_numpy(bias)
    lowest = ml_dtypes.finfo(values.dtype).min
    known = (values == 0) | (values == -np.inf) | (values == lowest)
    expected = f"0 (may attend), -inf or {lowest} (may not)"
    if drop_at is not None:
        known |= values == np.asarray(drop_at).astype(values.dtype)
        expected = f"0 (may attend), {drop_at}, -inf or {lowest} (may not)"
    refuse_other(problems, name, values, known, expected)
    return bias == 0


def refuse_other(problems: Problems, name: str, values: np.ndarray, known: np.ndarray, expected: str) -> None:
    """Note the first value that is not known, its place, and how many there are."""
    if known.all():
        return
    place = tuple(int(i) for i in np.argwhere(~known)[0])
    where = f"[{', '.join(map(str, place))}]" if place else ""
    count = int((~known).sum())
    more = "" if count == 1 else f" (the first of {count} such values)"
    problems.value(f"{name}{where} is {values[place]}{more}: it must be {expected}")


def as_dtype(owner: str, dtype: Any, kinds: tuple[str, ...]) -> np.dtype:
    """A NumPy dtype (ml_dtypes included, "bfloat16" by name) of one of these kinds.

    Raises:
        TypeError: it is another, or none.
    """
    try:
        given = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    except TypeError:
        raise TypeError(f"{owner}: dtype must be a NumPy dtype, got {describe(dtype)}") from None
    if kind_of(np.empty(0, given)) not in kinds:
        raise TypeError(f"{owner}: dtype must be {' or '.join(kinds)}, got {given}")
    return given


def compact(mask: Mask, q_len: int, kv_len: int, batch: int | None, heads: int | None) -> tuple[np.ndarray, list[int]]:
    """The mask in NumPy, rank 4, size 1 on axes that it does not read; and the four sizes."""
    mask = mask.map_data(to_numpy)
    settled = mask.settle(q_len, kv_len, batch, heads)
    sizes = [settled[axis] for axis in AXES]
    return np.asarray(evaluate(mask, tuple(sizes), np.arange)), sizes


def expanded(keep: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A copy of `keep`, broadcast."""
    return np.array(np.broadcast_to(keep, shape))
