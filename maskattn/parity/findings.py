"""What a check returns: findings, data first. A finding that did not hold says where and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn.typing import NumPyArray as Array


@dataclass(frozen=True)
class Finding:
    """The result of one check of one quantity.

    Attributes:
      check: what was checked: "bits", "tier1", "tier2", ...
      subject: who: an implementation, or two joined by " = ".
      quantity: "output", "lse", "d_query", ...
      held: whether the limit was kept.
      message: what was seen, in words; for a failure with place and numbers.
      worst, limit: the largest error and what it may be (or counts, for bits).
      elements, differing: how many numbers were compared, how many differ.
    """

    check: str
    subject: str
    quantity: str
    held: bool
    message: str = ""
    worst: float = 0.0
    limit: float = 0.0
    elements: int = 0
    differing: int = 0

    def __str__(self) -> str:
        return (
            f"{self.check} {self.quantity} [{self.subject}]: {'held' if self.held else 'FAILED'} {self.message}".strip()
        )


def failures(findings: list[Finding]) -> list[Finding]:
    """Those that did not hold."""
    return [finding for finding in findings if not finding.held]


def same_form(check: str, subject: str, quantity: str, left: Array, right: Array) -> Finding | None:
    """A failure where the two differ in shape or dtype; None where both agree."""
    if left.shape == right.shape and left.dtype == right.dtype:
        return None
    message = f"{left.dtype}{list(left.shape)} against {right.dtype}{list(right.shape)}"
    return Finding(check, subject, quantity, False, message, differing=left.size, elements=left.size)


def _ulps_apart(left: Array, right: Array) -> int:
    """The largest distance in representable numbers, -0 and +0 being one apart; exact, by integers."""

    def ordered(array: Array) -> list[int]:
        lowest = 1 << (8 * array.dtype.itemsize - 1)
        return [b if b < lowest else lowest - b - 1 for b in array.view(f"u{array.dtype.itemsize}").tolist()]

    return max(abs(a - b) for a, b in zip(ordered(left), ordered(right), strict=True))


def bits_equal(check: str, subject: str, quantity: str, left: object, right: object) -> Finding:
    """Zero bits different, signed zeros and NaN payloads included (`tobytes`); bool and float arrays of any dtype."""
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    wrong = same_form(check, subject, quantity, left, right)
    if wrong is not None:
        return wrong
    if left.tobytes() == right.tobytes():
        return Finding(check, subject, quantity, True, elements=left.size)
    unsigned = f"u{left.dtype.itemsize}"
    differ = (left.view(unsigned) != right.view(unsigned)).reshape(left.shape)
    first = tuple(int(i) for i in np.argwhere(differ)[0])
    message = (
        f"{int(differ.sum())} of {left.size} differ, first at {list(first)}: {left[first]!r} against {right[first]!r}"
    )
    if left.dtype.kind != "b":
        message += f", at most {_ulps_apart(left[differ], right[differ])} ulp apart"
    count = int(differ.sum())
    return Finding(check, subject, quantity, False, message, float(count), 0.0, left.size, count)
