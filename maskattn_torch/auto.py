"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

import functools
import math
import sys
import warnings

import numpy as np
import torch
from torch import Tensor as Array

from maskattn import schedule
from maskattn._fields import peek
from maskattn._pairs import grid
from maskattn.attention import Call
from maskattn.biases import Bias, DenseBias
from maskattn.masks import And, Causal, Dense, Full, Mask
from maskattn.typing import NumPyArray
from maskattn_torch._derivatives import beyond_first
from maskattn_torch._symbolic import below, known
from maskattn_torch.kernels import KERNELS, reference
from maskattn_torch.kernels.blockwise import flex
from maskattn_torch.kernels.fused import cuda

__all__ = ["choose", "compiles_flex", "give_up"]

#: Why FlexAttention is compiled no more.
_GIVEN_UP: list[flex.CompileFailed] = []

#: `blockwise` plans and calls for about 0.5 ms more than `fused`: the operations done in that time.
_WORTH = 1e8
#: And for each entry of an array that is a mask: the operations done in that time.
_PLANNED = 400
#: On GPUs: calls of so many operations, or with a dense mask of so many bytes, are worth a compiled kernel.
_LARGE, _MASK_BYTES = 1e11, 64 << 20
#: The tiles by which the share that a mask skips is estimated.
_TILE = 64


def choose(call: Call[Array]) -> tuple[str, str]:
    """(kernel, why) for a prepared call. What is chosen can run it.

    On CPUs (measured) `fused` where SDPA skips what can be skipped, or a dense mask costs less than planning;
    `blockwise` otherwise. On GPUs `_on_gpu` says.
    """
    # SDPA has no forward mode
    mask, fused = call.mask, not beyond_first() and not KERNELS["fused"].unsupported(call)
    if call.query.is_cuda:
        return _on_gpu(call, fused)
    plain = mask is None or isinstance(mask, Full) or isinstance(mask, Causal) and known(mask.offset == 0)
    if fused and plain and call.bias is None:
        return "fused", "SDPA's own kernel does exactly this call"
    if fused and not _saves(call):
        return "fused", "what the mask saves is less than planning costs: SDPA with a dense mask"
    if not KERNELS["blockwise"].unsupported(call):
        return "blockwise", "rectangles that the mask empties are skipped, in linear memory"
    return "reference", "the other kernels cannot express this call"


def _on_gpu(call: Call[Array], fused: bool) -> tuple[str, str]:
    """The choice on CUDA: from figures of its parts on an H200, never run as a whole.

    SDPA where it needs no mask, and for calls of little work with a dense one; FlexAttention, compiled on first use,
    for others; where neither runs the call, or SDPA would make all scores, the formula, some queries at a time.
    """
    few = below(_scores_bytes(call), reference.AT_ONCE_BYTES)
    if fused and call.bias is None and cuda.needs_no_mask(call) and (few or cuda.is_linear(call)):
        return "fused", "SDPA's own kernels do exactly this call"
    if below(_work(call), _LARGE if fused else _LARGE / 10) and below(_dense_bytes(call), _MASK_BYTES):
        if fused:
            return "fused", "so little work that a dense mask costs less than a plan: SDPA with a dense mask"
        return "reference", "SDPA cannot express this call, and it is too small to compile FlexAttention for"
    linear = fused and cuda.is_linear(call) and below(_dense_bytes(call), cuda.memory(call.query.device) / 4)
    learned = _is_learned(call.bias)
    if linear and (learned or isinstance(call.bias, DenseBias)):
        return "fused", "SDPA with a dense bias: the order in which FlexAttention adds up its gradient is not fixed"
    if compiles_flex() and not learned and not KERNELS["blockwise"].unsupported(call):
        if not (linear and flex.is_new(call)):
            return "blockwise", f"FlexAttention skips what the mask empties; {flex.COMPILES}"
    if linear:
        return "fused", "SDPA with a dense mask: FlexAttention does not run this call, or is not to be compiled for it"
    if fused and few:
        return "fused", "SDPA with a dense mask and all scores, which are few"
    return "reference", "the other kernels cannot express this call, or would make all scores: some queries at a time"


def compiles_flex() -> bool:
    """Whether FlexAttention may be compiled unasked: `maskattn_torch.compile_flex`.

    Raises:
        ValueError: that is neither "auto" nor "never".
    """
    chosen: object = sys.modules["maskattn_torch"].compile_flex
    if chosen not in ("auto", "never"):
        raise ValueError(f'maskattn_torch.compile_flex must be "auto" or "never", got {chosen!r}')
    return chosen == "auto" and not _GIVEN_UP


def give_up(error: flex.CompileFailed) -> None:
    """Compile FlexAttention no more unasked in this process, where that has failed; warns."""
    _GIVEN_UP.append(error)
    warnings.warn(f'{error}; kernel="auto" takes other kernels from now on', stacklevel=2)


def _is_learned(bias: Bias | None) -> bool:
    """Whether somebody may ask for the gradient of a bias."""
    leaves: list[Array] = []
    if bias is not None:
        bias.map_data(leaves.append)
    return torch.is_grad_enabled() and any([x.requires_grad for x in leaves])


def _dense_bytes(call: Call[Array]) -> int:
    """How large the mask and the bias are as SDPA takes them: as bools, and as what is added."""
    most = 0
    for node in (call.mask, call.bias):
        if node is not None:
            read = [size for name, size in zip("bhqk", call.sizes, strict=True) if name in node.depends]
            most = max(most, math.prod(read))
    return most * (1 + call.query.dtype.itemsize)


def _scores_bytes(call: Call[Array]) -> int:
    return math.prod(call.sizes) * max(4, call.query.dtype.itemsize)


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
