"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

import functools
from typing import Any

import torch

from maskattn import schedule
from maskattn.masks import Causal, Full
from maskattn_torch.kernels import KERNELS

Array = Any

__all__ = ["choose"]

#: `blockwise` plans and calls for about 0.5 ms more than `fused`: the operations done in that time.
_WORTH = 1e8
#: The tiles by which the share that a mask skips is estimated.
_TILE = 64


def choose(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, sinks: Array | None, **options: Any
) -> tuple[str, str]:
    """(kernel, why) for the arguments of a kernel. What is chosen can run the call.

    On CPUs (measured) `fused` where SDPA skips what can be skipped, or a dense mask costs less than planning;
    `blockwise` otherwise. On GPUs (not measured) `fused` where it can express the call: FlexAttention, which
    `blockwise` is there, is never compiled unasked.
    """
    arguments = (query, key, value, mask, bias, sinks)

    def can(kernel: str) -> bool:
        return not KERNELS[kernel].unsupported(*arguments, **options)

    if query.is_cuda:
        if can("fused"):
            return "fused", "SDPA can express this call"
        return "reference", "SDPA cannot express this call, and FlexAttention is not compiled unasked"
    if (
        bias is None
        and (mask is None or isinstance(mask, Full) or isinstance(mask, Causal) and mask.offset == 0)
        and can("fused")
    ):
        return "fused", "SDPA's own kernel does exactly this call"
    if can("fused") and not _saves(query, key, value, mask):
        return "fused", "what the mask saves is less than planning costs: SDPA with a dense mask"
    if can("blockwise"):
        return "blockwise", "rectangles that the mask empties are skipped, in linear memory"
    return "reference", "the other kernels cannot express this call"


def _saves(query: Array, key: Array, value: Array, mask: Any) -> bool:
    """Whether skipping what the mask empties saves more than planning costs."""
    if mask is None:
        return False
    batch, q_len, heads, dim = query.shape
    kv_len = key.shape[1]
    work = 2 * batch * heads * q_len * kv_len * (dim + value.shape[-1])
    if work < _WORTH:
        return False
    if mask.flatten()[0] or torch.compiler.is_compiling():
        return True  # the share is not known without reading the data
    return work * _skipped(mask, (batch, heads, q_len, kv_len)) > _WORTH


@functools.lru_cache(maxsize=64)
def _skipped(mask: Any, sizes: tuple[int, int, int, int]) -> float:
    return schedule.Schedule.of(mask, *sizes, _TILE, _TILE).skipped
