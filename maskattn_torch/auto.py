"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

import functools

import torch
from torch import Tensor as Array

from maskattn import schedule
from maskattn.attention import Call
from maskattn.masks import Causal, Full, Mask
from maskattn_torch._derivatives import beyond_first
from maskattn_torch._symbolic import below, known
from maskattn_torch.kernels import KERNELS

__all__ = ["choose"]

#: `blockwise` plans and calls for about 0.5 ms more than `fused`: the operations done in that time.
_WORTH = 1e8
#: The tiles by which the share that a mask skips is estimated.
_TILE = 64


def choose(call: Call[Array]) -> tuple[str, str]:
    """(kernel, why) for a prepared call. What is chosen can run it.

    On CPUs (measured) `fused` where SDPA skips what can be skipped, or a dense mask costs less than planning;
    `blockwise` otherwise. On GPUs (not measured) `fused` where it can express the call: FlexAttention, which
    `blockwise` is there, is never compiled unasked.
    """
    # SDPA has first derivatives in reverse mode, and what `fused` adds; not what is known here to be asked for
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
    batch, heads, q_len, kv_len = call.sizes
    work = 2 * batch * heads * q_len * kv_len * (call.query.shape[-1] + call.value.shape[-1])
    if below(work, _WORTH):
        return False
    if call.mask.flatten()[0] or torch.compiler.is_compiling():
        return True  # the share is not known without reading the data
    return work * _skipped(call.mask, call.sizes) > _WORTH


@functools.lru_cache(maxsize=64)
def _skipped(mask: Mask, sizes: tuple[int, int, int, int]) -> float:
    return schedule.Schedule.of(mask, *sizes, _TILE, _TILE).skipped
