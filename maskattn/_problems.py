"""Gathering everything wrong with a call, so that one error can name it all."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maskattn.arrays import dtype_name, is_compiling, is_int, peek
from maskattn.typing import Traced as Array

#: What the names of dtypes of a kind begin with.
_KINDS = {"bool": ("bool",), "int": ("int", "uint"), "float": ("float", "bfloat"), "float32": ("float32",)}
_ARTICLE = {"bool": "a bool", "int": "an int", "float": "a float", "float32": "a float32"}


class Problems:
    """What is wrong with one call, noted one by one.

    A method that takes a value says what is wrong with it and returns it as it should be, or as it came. `raise_if_any`
    raises a TypeError where an argument has the wrong type, otherwise a ValueError. Values are read only
    where the data are in NumPy: reading an array of a framework may wait for a device, or be impossible while tracing.
    """

    def __init__(self, where: str, reasons: Iterable[str] = ()) -> None:
        self.where = where
        self.reasons: list[str] = list(reasons)
        self.wrong_type = False

    def __bool__(self) -> bool:
        return len(self.reasons) > 0

    def value(self, reason: str) -> None:
        """Note a wrong value."""
        self.reasons.append(reason)

    def type(self, reason: str) -> None:
        """Note a wrong type."""
        self.reasons.append(reason)
        self.wrong_type = True

    def number(self, name: str, value: Any) -> float | None:
        """A Python float from an int or a float (NumPy's count), or None and a reason."""
        if not isinstance(value, bool) and (isinstance(value, (int, float)) or _is_numpy_number(value)):
            return float(value)
        self.type(f"{name} must be a number, got {show(value)}")
        return None

    def finite(self, name: str, value: float | None, positive: bool = False) -> None:
        """Note a number that is not finite or, if asked, not positive."""
        if value is None:
            return
        if not -math.inf < value < math.inf:  # a compiler may have left the number open: it compares, and no more
            self.value(f"{name} must be finite, got {value}")
        elif positive and value <= 0.0:
            self.value(f"{name} must be positive, got {value}")

    def choice(self, name: str, value: object, known: Sequence[str]) -> None:
        """Note a name that is not among the known ones."""
        if not isinstance(value, str):
            self.type(f"{name} must be one of {', '.join(known)}, got {show(value)}")
        elif value not in known:
            self.value(f"{name} must be one of {', '.join(known)}, got {value!r}")

    def integer(self, name: str, value: Any, minimum: int | None = None, below: int | None = None) -> Any:
        """`value` as an int."""
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            number = value if is_int(value) else operator.index(value)
        except Exception:  # traced arrays refuse with exceptions of their own
            self.type(f"{name} must be an int, got {describe(value)}")
            return value
        if minimum is not None and number < minimum:
            self.value(f"{name} must be at least {minimum}, got {number}")
        elif below is not None and number >= below:
            self.value(f"{name} must be less than {power(below)}, got {number}")
        return number

    def integer_or_array(
        self, name: str, value: Any, axes: str, minimum: int | None = None, ranks: Sequence[int] = ()
    ) -> Any:
        """`value` as an int, or as an int array with `axes`; a scalar of NumPy is an array where `axes` has []."""
        if is_int(value):
            return self.integer(name, value, minimum)
        if hasattr(value, "__len__") or (hasattr(value, "dtype") and (value.shape or 0 in (ranks or ranks_of(axes)))):
            return self.array(name, value, "int", axes, minimum, ranks)
        return self.integer(name, value, minimum)

    def integers(self, name: str, value: object, minimum: int | None = None, length: int | None = None) -> Any:
        """`value` as a tuple of ints; where `length` is given, an int stands for itself on every axis."""
        if length is not None and not isinstance(value, (Sequence, np.ndarray)):
            number = self.integer(name, value, minimum)
            return (number,) * length
        if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
            self.type(f"{name} must be a tuple of ints, got {describe(value)}")
            return value
        if length is not None and len(value) != length:
            self.value(f"{name} must have {length} entries, got {len(value)}")
        return tuple(self.integer(f"{name}[{i}]", entry, minimum) for i, entry in enumerate(value))

    def array(
        self, name: str, value: Any, kind: str, axes: str, minimum: int | None = None, ranks: Sequence[int] = ()
    ) -> Array:
        """`value` as an array of `kind` ("bool", "int", "float"); NumPy data are copied, so that they cannot change.

        `axes` is the expected shape as messages have it, as in `ranks_of`, whose result may be given too. Entries are
        compared with `minimum` where they can be read at once.
        """
        if is_compiling():
            value = _tensor(value, kind)
        elif not hasattr(value, "shape") or not hasattr(value, "dtype") or isinstance(value, (np.ndarray, np.generic)):
            try:
                value = _copied(value, kind)
            except ValueError:
                self.value(f"{name} must be {_ARTICLE[kind]} array {axes}, got a ragged {type(value).__name__}")
                return value
        dtype = dtype_name(value)
        if not dtype.startswith(_KINDS[kind]):
            hint = zero_one(name, value) if kind == "bool" else ""
            self.type(f"{name} must be {_ARTICLE[kind]} array, got dtype {dtype}{hint}")
        elif isinstance(value, np.ndarray) and value.dtype.kind == "u":
            # comparing uint64 with int64 would go through float64
            if value.size and int(value.max()) > np.iinfo(np.int64).max:
                self.value(f"{name} must fit in int64, got {int(value.max())}")
            value = value.astype(np.int64)
        if len(value.shape) not in (ranks or ranks_of(axes)):
            self.value(f"{name} must have shape {axes}, got {list(value.shape)}")
        if minimum is not None and isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.size:
            if int(value.min()) < minimum:
                least = f"be at least {minimum}" if minimum else "not be negative"
                self.value(f"{name} must {least}, got {int(value.min())}")
        return value

    def raise_if_any(self) -> None:
        """Raise one error with all reasons, or return."""
        if not self.reasons:
            return
        if len(self.reasons) == 1:
            message = f"{self.where}: {self.reasons[0]}"
        else:
            message = f"{self.where}: {len(self.reasons)} problems:" + "".join(f"\n  - {r}" for r in self.reasons)
        raise TypeError(message) if self.wrong_type else ValueError(message)


def ranks_of(axes: str) -> Sequence[int]:
    """The numbers of axes that a shape in words allows.

    >>> ranks_of("[S] or [B, S]"), ranks_of("broadcastable to [H, L, S]")
    ([1, 2], range(0, 4))
    """
    counts = [0 if shape[0] == "]" else shape.count(",") + 1 for shape in axes.split("[")[1:]]
    return range(counts[0] + 1) if axes.startswith("broadcastable") else counts


def zero_one(name: str, array: Array) -> str:
    """What to do with numbers given where a bool array is wanted, if they are 0 and 1 or cannot be read."""
    values = peek(array) if dtype_name(array).startswith(_KINDS["int"] + _KINDS["float"]) else np.array(2)
    if values is not None and not ((values == 0) | (values == 1)).all():
        return ""
    noun = "a mask" if name == "mask" else "an array"
    return f"; {noun} of 0 and 1? {name}{'.bool()' if hasattr(array, 'detach') else '.astype(bool)'}"


def _copied(value: object, kind: str) -> np.ndarray:
    array = np.array(value)
    if array.size == 0 and array.dtype == np.float64 and kind in ("bool", "int"):
        array = array.astype(bool if kind == "bool" else np.int64)  # an empty list has no dtype of its own
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _tensor(value: object, kind: str) -> Any:
    """What PyTorch's compiler can work with: lists and NumPy's arrays, whose dtypes it does not know, as tensors."""
    torch = sys.modules["torch"]
    if isinstance(value, (list, tuple)):  # with NumPy's dtypes
        dtypes = {"bool": torch.bool, "int": torch.int64}
        return torch.tensor(value, dtype=dtypes.get(kind, torch.float64))
    return torch.as_tensor(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _is_numpy_number(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and value.dtype.kind in "iuf"


def power(number: int) -> str:
    """The number as it is read best: a large power of two as 2**31."""
    return f"2**{number.bit_length() - 1}" if number > 9999 and number & (number - 1) == 0 else str(number)


def show(value: object) -> str:
    """A value in an error message: short."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(value: Any) -> str:
    """A value in an error message: short, with its type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of dtype {dtype_name(value)} and shape {list(value.shape)}"
    return f"{show(value)} ({type(value).__name__})"
