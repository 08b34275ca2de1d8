"""Random numbers that are those of `jax.random`, bit for bit, as PyTorch tensors on any device.

The same names and results as `maskattn.rng`, which says what the generator is. Keys are tensors of two uint32 words.
The draws are custom operators: PyTorch has little uint32 arithmetic, so they work on int32, which wraps alike, in place
and in pieces that stay in the cache; a compiler that traced the rounds would double its graph at each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskattn import rng

Array = Any

__all__ = ["words"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# Each of some 130 passes goes over one piece: on a CPU its three arrays stay in the cache, and calls cost little; on a
# device a piece is a launch.
_PIECE = 1 << 17
_DEVICE_PIECE = 1 << 24


def words(key: Any, device: Any = None) -> Array:
    """Two uint32 words on a device, from what may stand for a key: a seed in [0, 2**31), or the words themselves."""
    if isinstance(key, Tensor):
        return key.to(device)
    return torch.as_tensor(key if isinstance(key, np.ndarray) else rng.key(key), device=device)


def _piece(device: torch.device) -> int:
    return _PIECE if device.type == "cpu" else _DEVICE_PIECE


def _schedule(key: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What is added to the two words of a counter: first, and after each of the five groups of rounds; int32 []."""
    k0, k1 = key.view(torch.int32).unbind()
    words = (k0, k1, k0 ^ k1 ^ _PARITY)
    later = [(words[(group + 1) % 3], words[(group + 2) % 3] + (group + 1)) for group in range(5)]
    return [(words[0], words[1]), *later]


def _threefry2x32(schedule: list[tuple[Tensor, Tensor]], x0: Tensor, x1: Tensor, scratch: Tensor) -> None:
    """Threefry-2x32, 20 rounds, in place on two int32 tensors of one shape, modulo 2**32."""
    x0.add_(schedule[0][0])
    x1.add_(schedule[0][1])
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0.add_(x1)
            torch.bitwise_right_shift(x1, 32 - distance, out=scratch)
            scratch.bitwise_and_((1 << distance) - 1)  # the shift is arithmetic
            x1.bitwise_left_shift_(distance).bitwise_or_(scratch).bitwise_xor_(x0)
        x0.add_(schedule[group + 1][0])
        x1.add_(schedule[group + 1][1])
