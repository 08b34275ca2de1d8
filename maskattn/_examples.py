"""What `Mask.examples` and `Bias.examples` are given, and what several masks need to make theirs.

The protocols are met by `Shape` and `Draws` of the parity suite; masks and biases import neither.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Sizes(Protocol):
    """The sizes of one attention that examples must fit."""

    @property
    def batch(self) -> int: ...
    @property
    def q_len(self) -> int: ...
    @property
    def kv_len(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def scores(self) -> tuple[int, int, int, int]:
        """[B, H, L, S]."""


class Draws(Protocol):
    """A stream of numbers that no version of any library changes."""

    def integer(self, low: int, high: int) -> int:
        """One int in [low, high)."""

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """int64 in [low, high), of `shape`."""

    def booleans(self, shape: tuple[int, ...], share: float) -> np.ndarray:
        """bool of `shape`, True with probability `share`."""

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """float64 of `shape`, from the standard normal distribution."""


def factors(size: int) -> tuple[int, int]:
    """The two factors of `size` (at least 1) nearest to each other, the smaller first: a grid of `size` positions."""
    return max((d, size // d) for d in range(1, int(size**0.5) + 1) if size % d == 0)
