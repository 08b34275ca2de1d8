"""Numbers for cases, drawn so that no version of NumPy can change them.

Only the raw words of the Philox bit generator are used: NumPy promises their stream, while the methods that turn words
into normal numbers may change between versions, and golden hashes must not.
"""

from __future__ import annotations

import zlib

import numpy as np


class Draws:
    """A stream of numbers, a function of its seed (an int, or any text) alone."""

    def __init__(self, seed: int | str) -> None:
        number = zlib.crc32(seed.encode()) if isinstance(seed, str) else seed
        self._words = np.random.Philox(key=number)

    def words(self, count: int) -> np.ndarray:
        """uint64 [count]."""
        return np.asarray(self._words.random_raw(count), dtype=np.uint64)

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """int64 in [low, high), of `shape`."""
        words = self.words(int(np.prod(shape, dtype=np.int64)))
        return (low + (words >> np.uint64(1)).astype(np.int64) % (high - low)).reshape(shape)

    def integer(self, low: int, high: int) -> int:
        """One int in [low, high)."""
        return int(self.integers(low, high))

    def booleans(self, shape: tuple[int, ...], share: float = 0.5) -> np.ndarray:
        """bool of `shape`, True with probability `share`."""
        return self.integers(0, 1 << 20, shape) < int(share * (1 << 20))

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """float64 of `shape`: mean 0, variance 1, the sum of four 16-bit words (bell-shaped, at most 3.47)."""
        words = self.words(int(np.prod(shape, dtype=np.int64)))
        pieces = words[:, None] >> np.array([0, 16, 32, 48], dtype=np.uint64) & np.uint64(0xFFFF)
        total = pieces.astype(np.int64).sum(axis=1) - 2 * 0xFFFF
        return (total / (65536.0 / np.sqrt(3.0))).reshape(shape)
