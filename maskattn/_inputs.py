"""Checks of constructor arguments: every fault is collected, and one error names them all."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskattn._fields import Array, dtype_name
from maskattn._problems import Problems, show

_KINDS = {"bool": ("bool",), "int": ("int", "uint"), "float": ("float", "bfloat")}
_ARTICLE = {"bool": "a bool", "int": "an int", "float": "a float"}


class Inputs(Problems):
    """Checks the arguments of one constructor; `done` raises what was found.

    Values are read only where the data are in NumPy: reading an array of a framework may wait for a device, or be
    impossible while tracing.
    """

    def fault(self, message: str, *, of_type: bool = False) -> None:
        """Note a wrong value, or a wrong type."""
        if of_type:
            self.type(message)
        else:
            self.value(message)

    def integer(self, name: str, value: Any, minimum: int | None = None) -> Any:
        """`value` as an int."""
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            number = operator.index(value)
        except Exception:  # traced arrays refuse with exceptions of their own
            self.fault(f"{name} must be an int, got {describe(value)}", of_type=True)
            return value
        if minimum is not None and number < minimum:
            self.fault(f"{name} must be at least {minimum}, got {number}")
        return number

    def integers(self, name: str, value: Any, minimum: int | None = None, length: int | None = None) -> Any:
        """`value` as a tuple of ints; where `length` is given, an int stands for itself on every axis."""
        if length is not None and not isinstance(value, (Sequence, np.ndarray)):
            number = self.integer(name, value, minimum)
            return (number,) * length
        if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)):
            self.fault(f"{name} must be a tuple of ints, got {describe(value)}", of_type=True)
            return value
        if length is not None and len(value) != length:
            self.fault(f"{name} must have {length} entries, got {len(value)}")
        return tuple(self.integer(f"{name}[{i}]", entry, minimum) for i, entry in enumerate(value))

    def array(self, name: str, value: Any, kind: str, axes: str, ranks: tuple[int, ...]) -> Array:
        """`value` as an array of `kind` ("bool", "int", "float"); NumPy data are copied, so that they cannot change.

        `axes` says the expected shape in messages.
        """
        if not hasattr(value, "shape") or not hasattr(value, "dtype") or isinstance(value, (np.ndarray, np.generic)):
            try:
                value = np.array(value)
            except ValueError:
                self.fault(f"{name} must be {_ARTICLE[kind]} array {axes}, got a ragged {type(value).__name__}")
                return value
            if value.size == 0 and value.dtype == np.float64 and kind != "float":
                value = value.astype(bool if kind == "bool" else np.int64)  # an empty list has no dtype of its own
            if not value.dtype.isnative:
                value = value.astype(value.dtype.newbyteorder("="))
        found = dtype_name(value)
        if not found.startswith(_KINDS[kind]):
            self.fault(f"{name} must be {_ARTICLE[kind]} array, got dtype {found}", of_type=True)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "u":
            # comparing uint64 with int64 would go through float64
            if value.size and int(value.max()) > np.iinfo(np.int64).max:
                self.fault(f"{name} must fit in int64, got {int(value.max())}")
            value = value.astype(np.int64)
        if len(value.shape) not in ranks:
            self.fault(f"{name} must have shape {axes}, got {list(value.shape)}")
        return value

    def not_negative(self, name: str, value: Any) -> None:
        """Entries of `value`, where they can be read at once, are at least 0."""
        if isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.size and int(value.min()) < 0:
            self.fault(f"{name} must not be negative, got {int(value.min())}")

    def done(self) -> None:
        """Raise one error with all faults, or return."""
        self.raise_if_any()


def describe(value: Any) -> str:
    """A value in an error message: short, with its type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of dtype {dtype_name(value)} and shape {list(value.shape)}"
    return f"{show(value)} ({type(value).__name__})"
