"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor as Array

from maskattn import schedule
from maskattn._fields import peek
from maskattn._pairs import grid
from maskattn.attention import Call
from maskattn.masks import And, Causal, Dense, Full, Mask
from maskattn.typing import NumPyArray
from maskattn_torch._derivatives import beyond_first
from maskattn_torch._symbolic import below, known
from maskattn_torch.kernels import KERNELS

__all__ = ["choose"]

#: `blockwise` plans and calls for about 0.5 ms more than `fused`: the operations done in that time.
_WORTH = 1e8
#: And for each entry of an array that is a mask: the operations done in that time.
_PLANNED = 400
#: The tiles by which the share that a mask skips is estimated.
_TILE = 64


def choose(call: Call[Array]) -> tuple[str, str]:
    """(kernel, why) for a prepared call. What is chosen can run it.

    On CPUs (measured) `fused` where SDPA skips what can be skipped, or a dense mask costs less than planning;
    `blockwise` otherwise. On GPUs (not measured) `fused` where it can express the call: FlexAttention, which
    `blockwise` is there, is never compiled unasked.
    """
    # SDPA has no forward mode
    mask, fused = call.mask, not beyond_first() and not KERNELS["fused"].unsupported(call)
    if call.query.is_cuda:
        if fused:
            return "fused", "SDPA can express this call"
        return "reference", "SDPA cannot express this call, and FlexAttention is not compiled unasked"
    plain = mask is None or isinstance(mask, Full) or isinstance(mask, Causal) and known(mask.offset == 0)
    if fused and plain and call.bias is None:
        return "fused", "SDPA's own kernel does exactly this call"
    if fused and not _saves(call):
        return "fused", "what the mask saves is less than planning costs: SDPA with a dense mask"
    if not KERNELS["blockwise"].unsupported(call):
        return "blockwise", "rectangles that the mask empties are skipped, in linear memory"
    return "reference", "the other kernels cannot express this call"


def _saves(call: Call[Array]) -> bool:
    """Whether skipping what the mask empties saves more than planning costs."""
    if call.mask is None:
        return False
    if _is_short(call):
        return False
    work = _work(call)
    readable = not torch.compiler.is_compiling()
    entries = _entries(call.mask)
    if entries:  # planning looks at each of them, and most such masks have no empty tiles
        return readable and work * _emptied(call.mask, call.sizes) > _WORTH + _PLANNED * entries
    if call.mask.flatten()[0] or not readable:
        return True  # the share is not known without reading the data
    return work * _skipped(call.mask, call.sizes) > _WORTH


def _is_short(call: Call[Array]) -> bool:
    """Whether this is so little work that planning costs more, whatever the mask."""
    return below(_work(call), _WORTH)


def _work(call: Call[Array]) -> int:
    batch, heads, q_len, kv_len = call.sizes
    return 2 * batch * heads * q_len * kv_len * (call.query.shape[-1] + call.value.shape[-1])


@functools.lru_cache(maxsize=64)
def _skipped(mask: Mask, sizes: tuple[int, int, int, int]) -> float:
    return schedule.Schedule.of(mask, *sizes, _TILE, _TILE).skipped


def _entries(mask: Mask) -> int:
    """How many entries the arrays of pairs have that a mask is made of; 0 where it has none."""
    if isinstance(mask, Dense):
        return mask.keep.numel() if mask.depends >= {"q", "k"} else 0
    return sum(_entries(part) for part in mask.children())


def _emptied(mask: Mask, sizes: tuple[int, int, int, int]) -> float:
    """The share of tiles that bounds show to be empty, 0 where data cannot be read: takes 1 % of what SDPA takes."""
    found = _live(mask, sizes)
    return 0.0 if found is None else 1.0 - float(found.mean())


def _live(mask: Mask, sizes: tuple[int, int, int, int]) -> NumPyArray | None:
    """Which tiles may have an allowed pair: bool, broadcasting to [B, H, rows, columns] of tiles; None: all may."""
    if isinstance(mask, And):
        parts = [part for part in (_live(part, sizes) for part in mask.parts) if part is not None]
        return functools.reduce(np.logical_and, parts) if parts else None
    if _entries(mask):
        if not isinstance(mask, Dense):
            return None
        keep = peek(mask.keep)
        return None if keep is None else _some_in_tiles(keep.reshape(mask.shape))
    data: list[object] = []
    mask.map_data(data.append)
    if any(peek(array) is None for array in data):
        return None
    readable = mask.map_data(peek)
    tiles = (*sizes[:2], -(-sizes[2] // _TILE), -(-sizes[3] // _TILE))
    b, h, q, k = grid(frozenset("bhqk"), tiles, np.arange)
    q_high, k_high = (np.minimum((x + 1) * _TILE, size) - 1 for x, size in zip((q, k), sizes[2:], strict=True))
    return np.asarray(readable.tile(b, h, q * _TILE, q_high, k * _TILE, k_high)[0])


def _some_in_tiles(keep: NumPyArray) -> NumPyArray:
    """Which tiles of keep [b, h, L, S] have a True."""
    q_len, kv_len = keep.shape[2:]
    rows = np.stack([keep[:, :, start : start + _TILE].any(2) for start in range(0, q_len, _TILE)], 2)
    return np.logical_or.reduceat(rows, np.arange(0, kv_len, _TILE), 3)
