"""kernel="auto": which kernel runs a call. The figures behind the rules are in benchmarks/results."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from maskattn.attention import Call
from maskattn_jax._platform import platform
from maskattn_jax.kernels import KERNELS

__all__ = ["choose"]

#: Up to so many scores in a head, tiles cost more than they save: XLA's own attention does all windows of a Swin stage
#: at once. The limit is higher for a mask that differs between batch rows, which costs `blockwise` more.
_SMALL, _SMALL_BY_ROW = 64 * 64, 128 * 128


def choose(call: Call[Array]) -> tuple[str, str]:
    """(kernel, why) for a prepared call. What is chosen can run it.

    On CPUs (measured) `blockwise`, but for the smallest matrices; on TPUs and on GPUs in 16 bits (not measured) the
    vendor's where it can express the call.
    """

    def can(kernel: str) -> bool:
        return not KERNELS[kernel].unsupported(call)

    on = platform()
    if not call.is_sized:
        if can("fused"):
            return "fused", "its sizes are left open: XLA's own attention takes any"
        return "reference", "its sizes are left open, and jax.nn.dot_product_attention cannot express this call"
    _, _, q_len, kv_len = call.sizes
    small = _SMALL_BY_ROW if call.mask is not None and "b" in call.mask.depends else _SMALL
    if on == "cpu" and q_len * kv_len <= small and q_len > 1 and can("fused"):
        return "fused", f"{q_len} x {kv_len} scores are one tile: XLA's own attention does all at once"
    if (on == "tpu" or on == "gpu" and call.query.dtype in (jnp.bfloat16, jnp.float16)) and can("fused"):
        return "fused", f"the vendor's attention on a {on} can express this call"
    if can("blockwise"):
        return "blockwise", "tiles that the mask empties are skipped, in linear memory"
    return "reference", "the other kernels cannot express this call"
