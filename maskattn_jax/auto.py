"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

from typing import Any

import jax

from maskattn_jax.kernels import KERNELS
from maskattn_jax.kernels.fused import platform

Array = Any

__all__ = ["choose"]

#: Up to so many scores in a head, tiles cost more than they save: XLA's own attention does all windows of a Swin stage
#: at once. The limit is higher for a mask that differs between batch rows, which costs `blockwise` more.
_SMALL, _SMALL_BY_ROW = 64 * 64, 128 * 128


def choose(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, sinks: Array | None, **options: Any
) -> tuple[str, str]:
    """(kernel, why) for the arguments of a kernel. What is chosen can run the call.

    On CPUs (measured) `blockwise`, but for the smallest matrices; on TPUs and on GPUs in 16 bits (not measured) the
    vendor's where it can express the call.
    """
    arguments = (query, key, value, mask, bias, sinks)

    def can(kernel: str) -> bool:
        return not KERNELS[kernel].unsupported(*arguments, **options)

    on = platform()
    scores = query.shape[1] * key.shape[1]
    small = _SMALL_BY_ROW if mask is not None and "b" in mask.depends else _SMALL
    if on == "cpu" and scores <= small and query.shape[1] > 1 and can("fused"):
        return "fused", f"{query.shape[1]} x {key.shape[1]} scores are one tile: XLA's own attention does all at once"
    if (on == "tpu" or on == "gpu" and query.dtype in (jax.numpy.bfloat16, jax.numpy.float16)) and can("fused"):
        return "fused", f"the vendor's attention on a {on} can express this call"
    if can("blockwise"):
        return "blockwise", "tiles that the mask empties are skipped, in linear memory"
    return "reference", "the other kernels cannot express this call"
