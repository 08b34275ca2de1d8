"""Gathering everything wrong with a call, so that one error can name it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class Problems:
    """Gathers everything wrong with one call, so that one error can name it all.

    `raise_if_any` raises a TypeError where an argument has the wrong type, otherwise a ValueError.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.faults: list[str] = []
        self.wrong_type = False

    def __bool__(self) -> bool:
        return len(self.faults) > 0

    def value(self, reason: str) -> None:
        """Note a wrong value."""
        self.faults.append(reason)

    def type(self, reason: str) -> None:
        """Note a wrong type."""
        self.faults.append(reason)
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
        if not math.isfinite(value):
            self.value(f"{name} must be finite, got {value}")
        elif positive and value <= 0.0:
            self.value(f"{name} must be positive, got {value}")

    def choice(self, name: str, value: Any, known: Sequence[str]) -> None:
        """Note a name that is not among the known ones."""
        if not isinstance(value, str):
            self.type(f"{name} must be one of {', '.join(known)}, got {show(value)}")
        elif value not in known:
            self.value(f"{name} must be one of {', '.join(known)}, got {value!r}")

    def raise_if_any(self) -> None:
        """Raise one error with all reasons, or return."""
        if not self.faults:
            return
        if len(self.faults) == 1:
            message = f"{self.where}: {self.faults[0]}"
        else:
            message = f"{self.where}: {len(self.faults)} problems:" + "".join(f"\n  - {r}" for r in self.faults)
        raise TypeError(message) if self.wrong_type else ValueError(message)


def _is_numpy_number(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and value.dtype.kind in "iuf"


def show(value: Any) -> str:
    """A value in an error message: short."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
