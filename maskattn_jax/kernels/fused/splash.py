"""TPU Splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`) with a mask of this library.

The part of a mask that is the same in every batch row becomes a Splash mask, which the TPU's schedule is made from;
documents and padding become segment ids. Splash computes in tiles of 128, so lengths must be multiples of that.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType

from maskattn.attention import Call
from maskattn.masks import And, Full, KeyMask, KeyPadding, Mask, Segments
from maskattn_jax import lower
from maskattn_jax._mesh import axis_types

_BLOCK = 128
_NOTHING = -1  # the segment of a key that nothing may attend to: no query has it


def attention(call: Call[Array], interpret: bool = False) -> Array:
    """Splash attention: query [B, L, H, D], key and value [B, S, K, D] -> [B, L, H, D].

    Rows that may attend to nothing give anything. `interpret` runs the kernel without a TPU, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    batch, heads, q_len, kv_len = call.sizes
    static, per_row = _split(call.mask)
    kernel = _kernel(static, heads, q_len, kv_len, call.softcap, interpret)
    scaled = call.query * jnp.asarray(call.scale, call.query.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (scaled, call.key, call.value))
    if per_row:
        ids = SegmentIds(*_segment_ids(per_row, batch, q_len, kv_len))
        out = jax.vmap(kernel, (0, 0, 0, 0, None))(q, k, v, ids, call.sinks)
    else:
        out = jax.vmap(kernel, (0, 0, 0, None, None))(q, k, v, None, call.sinks)
    return jnp.swapaxes(out, 1, 2)


def unsupported(call: Call[Array]) -> list[str]:
    """Everything that Splash attention cannot express; [] where it runs the call."""
    reasons = []
    _, heads, q_len, kv_len = call.sizes
    for name, length in (("query", q_len), ("key", kv_len)):
        if length % _BLOCK:
            reasons.append(f"Splash attention needs lengths that are multiples of {_BLOCK}, got {name} {length}")
    if axis_types(call.query, call.key, call.value) - {AxisType.Manual}:
        reasons.append("XLA cannot divide Splash attention over a mesh: put the call into a jax.shard_map")
    if call.bias is not None:
        reasons.append("Splash attention has no bias")
    static, per_row = _split(call.mask)
    if sum(isinstance(part, Segments) for part in per_row) > 1:
        reasons.append("Splash attention takes one pair of segment ids, and the mask has several Segments")
    try:
        lower.to_splash_mask(static, heads, q_len, kv_len)
    except (TypeError, ValueError) as error:
        reasons.append(str(error))
    return reasons


def _split(mask: Mask | None) -> tuple[Mask, list[Mask]]:
    """The part of a mask that Splash plans with, and the parts that become segment ids."""
    parts: tuple[Mask, ...] = mask.parts if isinstance(mask, And) else () if mask is None else (mask,)
    per_row: list[Mask] = [part for part in parts if isinstance(part, (Segments, KeyPadding, KeyMask))]
    static = [part for part in parts if part not in per_row]
    return (functools.reduce(operator.and_, static) if static else Full()), per_row


def _segment_ids(per_row: list[Mask], batch: int, q_len: int, kv_len: int) -> tuple[Array, Array]:
    """Ids int32 [B, L] and [B, S] whose equality is what the parts allow together."""
    q_ids, k_ids = jnp.zeros((batch, q_len), jnp.int32), jnp.zeros((batch, kv_len), jnp.int32)
    for part in per_row:
        if isinstance(part, Segments):
            own = jnp.asarray(part.q_ids, jnp.int32)
            others = own if part.k_ids is None else jnp.asarray(part.k_ids, jnp.int32)
            # a negative id is equal to none, its like included
            q_ids = jnp.broadcast_to(jnp.where(own < 0, _NOTHING - 1, own), q_ids.shape)
            k_ids = jnp.broadcast_to(jnp.where(others < 0, _NOTHING, others), k_ids.shape)
    for part in per_row:
        if not isinstance(part, Segments):
            seen: Any = lower.allowed(part, batch, 1, q_len, kv_len)
            k_ids = jnp.where(seen[:, 0, 0], k_ids, _NOTHING)
    return q_ids, k_ids


@functools.lru_cache(maxsize=64)
def _kernel(static: Mask, heads: int, q_len: int, kv_len: int, softcap: float | None, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import make_splash_mha

    # its constants are made now, not traced, so that the kernel can be used in the next trace as well
    with jax.ensure_compile_time_eval():
        return make_splash_mha(
            lower.to_splash_mask(static, heads, q_len, kv_len),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
