"""Arrays whose memory is used again when the last view of them is gone.

A large array that is freed goes back to the system, and the next one is faulted in page by page: in a stream of
tensors that costs as much as reading them.
"""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np

from maskattn.typing import NumPyArray as Array, NumPyDType

_BOUNDARY = 64  # bytes: where an array must begin for XLA to take it as it is
SMALL = 2**20  # below this many bytes an array is made as usual


class Memory:
    """Gives out arrays, and keeps the blocks that come back.

    Args:
        spare: at most so many blocks are kept for the next arrays.
    """

    def __init__(self, spare: int = 2) -> None:
        self._spare, self._lock = spare, threading.RLock()
        self._free: list[bytearray] = []

    def empty(self, shape: tuple[int, ...], dtype: NumPyDType) -> Array:
        """As ``np.empty``; the array is the caller's as long as it, or any view of it, is referred to.

        Args:
            shape: of the array. dtype: of its entries.

        Returns:
            An array of this shape and dtype, whose entries are anything.
        """
        size = math.prod(shape) * dtype.itemsize
        if size < SMALL:
            return np.empty(shape, dtype)
        block = self._take(size)
        # Views of an array refer to the last array that lies under them, and this one lies on no other.
        owner = np.frombuffer(block, np.uint8)
        weakref.finalize(owner, self._give, block).atexit = False
        return owner[:size].view(dtype).reshape(shape)

    def clear(self) -> None:
        """Lets go of the blocks that came back."""
        with self._lock:
            self._free = []

    def _take(self, size: int) -> bytearray:
        with self._lock:
            fitting = [block for block in self._free if len(block) >= size]
            if fitting:
                block = min(fitting, key=len)
                self._free = [other for other in self._free if other is not block]
                return block
            self._free = []  # too small: what is given out next takes their place
        return bytearray(size)

    def _give(self, block: bytearray) -> None:
        with self._lock:
            self._free = sorted([*self._free, block], key=len)[-self._spare :]


SHARED = Memory(spare=4)
"""Of all readers, and of what is stacked of what they read: two pools would each keep what the other needs."""


class Kept(Memory):
    """Gives out arrays that their callers keep: each has memory of its own, no more than it needs, that begins where
    frameworks take an array without copying it.
    """

    def empty(self, shape: tuple[int, ...], dtype: NumPyDType) -> Array:
        """As of `Memory`."""
        size = math.prod(shape) * dtype.itemsize
        block = np.empty(size + _BOUNDARY, np.uint8)
        start = -block.ctypes.data % _BOUNDARY
        return block[start : start + size].view(dtype).reshape(shape)


KEPT = Kept()
"""Of whoever keeps what was read."""
