"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

import math

from jax import Array

from maskattn.attention import Call
from maskattn.biases import DenseBias
from maskattn_jax._partition import is_automatic
from maskattn_jax._platform import platform
from maskattn_jax.kernels import KERNELS
from maskattn_jax.kernels.blockwise import gpu
from maskattn_jax.kernels.fused import cudnn

__all__ = ["choose"]

#: Up to so many scores in a head, tiles cost more than they save: XLA's own attention does all windows of a Swin stage
#: at once. The limit is higher for a mask that differs between batch rows, which costs `blockwise` more.
_SMALL, _SMALL_BY_ROW = 64 * 64, 128 * 128
#: On a GPU, where cuDNN has no words for a mask: up to so many scores in a head an array says it (not measured).
_SMALL_ON_GPU = 512 * 512
#: On a GPU, where there is no tile kernel for a call: so many bytes of scores are less than what loops of XLA cost.
_SCORES_BYTES = 1 << 30
_NEVER = "never run on a TPU: lowered for one, and interpreted, in tests"


def choose(call: Call[Array]) -> tuple[str, str]:
    """(kernel, why) for a prepared call. What is chosen can run it.

    On CPUs (measured) `blockwise`, but for the smallest matrices; on GPUs cuDNN where it has words for the call, which
    it ran 1.3 to 1.6 times as fast (measured with a prototype of the tile kernel on an H200), else the tile kernel; on
    TPUs Splash attention where it can express the call (never run).
    """

    def can(kernel: str) -> bool:
        return not KERNELS[kernel].unsupported(call)

    on = platform(call.query, call.key, call.value)
    if not call.is_sized:
        if can("fused"):
            return "fused", "its sizes are left open: XLA's own attention takes any"
        return "reference", "its sizes are left open, and jax.nn.dot_product_attention cannot express this call"
    if on == "gpu" and (chosen := _on_gpu(call, can("fused"))):
        return chosen
    if on == "tpu" and can("fused"):
        return "fused", f"Splash attention can express this call ({_NEVER})"
    _, _, q_len, kv_len = call.sizes
    small = _SMALL_BY_ROW if call.mask is not None and "b" in call.mask.depends else _SMALL
    if on == "cpu" and q_len * kv_len <= small and q_len > 1 and can("fused"):
        return "fused", f"{q_len} x {kv_len} scores are one tile: XLA's own attention does all at once"
    if can("blockwise"):
        never = f" ({_NEVER})" if on == "tpu" else ""
        return "blockwise", f"tiles that the mask empties are skipped, in linear memory{never}"
    return "reference", "the other kernels cannot express this call"


def _on_gpu(call: Call[Array], fused: bool) -> tuple[str, str] | None:
    """The choice on a GPU; None where it is as elsewhere."""
    if fused and (why := _of_cudnn(call)):
        return "fused", why
    if KERNELS["blockwise"].unsupported(call):
        return None
    reasons = "; ".join(gpu.reasons(call))
    if not reasons:
        return "blockwise", "the tile kernel, which skips what the mask empties: interpreted and lowered in tests"
    if math.prod(call.sizes) * max(4, call.query.dtype.itemsize) <= _SCORES_BYTES:
        return "fused" if fused else "reference", f"the scores are few, and there is no tile kernel: {reasons}"
    return "blockwise", f"by loops of XLA, in linear memory; there is no tile kernel: {reasons}"


def _of_cudnn(call: Call[Array]) -> str | None:
    """Why cuDNN is the faster one for a call that `fused` can run; None where it is not."""
    # over automatic axes queries may be divided along their length, where JAX raises for cuDNN
    if cudnn.unsupported(call) or is_automatic(call.query, call.key, call.value):
        return None
    _, _, q_len, kv_len = call.sizes
    if q_len * kv_len <= _SMALL_ON_GPU:
        return f"{q_len} x {kv_len} scores are few: cuDNN, with an array where it has no words for the mask"
    if call.bias is not None:  # an array of the user's is one already; others would be made
        return "cuDNN, with the array that is the bias" if isinstance(call.bias, DenseBias) else None
    return "cuDNN has words for this mask" if cudnn.says(call.mask, call.sizes) else None
