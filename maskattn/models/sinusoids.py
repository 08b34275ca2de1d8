"""Fixed tables of positions: sines in the first half of a row, cosines in the second."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from maskattn.arrays import constant
from maskattn.typing import NumPyArray


def halves(shape: tuple[int, ...]) -> NumPyArray:
    """Vaswani et al.'s frequencies 10000^(-2i / width), float32 [rows, width]: those of Pegasus and Marian."""
    rows, width = shape
    return _table(np.arange(rows)[:, None] / 10000.0 ** (2 * np.arange((width + 1) // 2) / width), width)


def spread(shape: tuple[int, ...]) -> NumPyArray:
    """From 1 down to 1/10000, both reached, float32 [rows, width]: those of Whisper and M2M-100."""
    rows, width = shape
    half = width // 2
    each = np.exp(np.arange(half, dtype=np.float32) * -np.float32(math.log(10000) / (half - 1)))
    return _table(np.arange(rows, dtype=np.float32)[:, None] * each, width)


def _table(angles: NumPyArray, width: int) -> NumPyArray:
    both = np.concatenate([np.sin(angles), np.cos(angles)[:, : width // 2]], 1).astype(np.float32)
    return np.pad(both, ((0, 0), (0, width - both.shape[1])))


@dataclass(frozen=True)
class Sinusoids:
    """A table that is computed, once: `spread`, its row `zero` of zeros.

    Attributes:
        positions: how many tokens there may be: longer sequences have the rows that they need.
        offset: the row of the first token.
    """

    positions: int
    width: int
    offset: int
    zero: int

    def numbers(self, length: int) -> NumPyArray:
        """float32 [rows, width], of sequences of this length."""
        rows = self.positions if length <= self.positions else length  # with `max`, PyTorch would compile each length
        return _numbers(rows + self.offset, self.width, self.zero)


@constant
@functools.lru_cache(maxsize=8)
def _numbers(rows: int, width: int, zero: int) -> NumPyArray:
    made = spread((rows, width))
    made[zero] = 0
    return made
