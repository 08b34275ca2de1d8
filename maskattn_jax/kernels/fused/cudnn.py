"""cuDNN's attention, by `jax.nn.dot_product_attention`, within what cuDNN takes.

A mask that its words cannot say is given as an array, which cuDNN adds to every score; it then skips nothing. Plain,
causal and window forms were run on an H200; of what is padded here JAX's own checks (of JAX 0.10.2 and 0.11.2, in
jax/_src/cudnn/fused_attention_stablehlo.py), the gradients' included, and lowering for CUDA.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.attention import Call
from maskattn.biases import Bias, DenseBias
from maskattn.masks import Mask
from maskattn.masks.interop.bands import Band
from maskattn_jax import lower
from maskattn_jax._mesh import spec_of
from maskattn_jax.lower.words import in_words

Keywords: TypeAlias = dict[str, Any]  #: of `jax.nn.dot_product_attention`

#: Head sizes: on Hopper and later, and on what comes before; a multiple of 8.
_MOST, _MOST_BEFORE, _STEP = 256, 128, 8


def attention(query: Array, key: Array, value: Array, scale: float, keywords: Keywords) -> Array:
    """query [B, L, H, D], key and value [B, S, K, D], of 16 bits -> [B, L, H, D].

    `keywords`: those of jax.nn, `mask` and `bias` of rank 4.
    """
    (batch, q_len, _, width), kv_len = query.shape, key.shape[1]
    # JAX gives its gradient even lengths only: one more query and one more key, neither of which counts
    more = q_len % 2, kv_len % 2
    keywords = dict(keywords)
    for name, nothing in (("mask", False), ("bias", 0)):
        if name in keywords:
            keywords[name] = _of_all_pairs(keywords[name], (q_len, kv_len), more, nothing)
    if more[1] and "mask" not in keywords:
        keywords.setdefault("key_value_seq_lengths", jnp.full((batch,), kv_len, jnp.int32))
    to = -(-width // _STEP) * _STEP
    given = [_grown(x, extra, to) for x, extra in ((query, more[0]), (key, more[1]), (value, more[1]))]
    out = jax.nn.dot_product_attention(*given, scale=scale, implementation="cudnn", **keywords)
    return out[:, :q_len, :, :width]


def unsupported(call: Call[Array]) -> list[str]:
    """Every reason why cuDNN cannot run a call, at whatever cost."""
    reasons = [] if call.is_sized else ["cuDNN takes sizes that are numbers"]
    query, value, bias = call.query, call.value, call.bias
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        reasons.append(f"cuDNN computes 16-bit inputs, got {query.dtype}")
    most, width = _most(), max(query.shape[-1], value.shape[-1])
    if width > most:
        reasons.append(f"cuDNN takes head sizes up to {most} on this GPU, got {width}")
    # cuDNN would have it in the inputs' dtype: one that is wider keeps its digits elsewhere
    if bias is not None and (dtype := _dtype(bias)) != query.dtype:
        reasons.append(f"cuDNN takes a bias of the inputs' dtype {query.dtype}, got {dtype}")
    return reasons


def misplaced(call: Call[Array]) -> list[str]:
    """Why cuDNN cannot run a call on a mesh, as far as explicit axes say how its arrays lie."""
    specs = [spec_of(x) for x in (call.query, call.key, call.value)]
    if specs[0] == specs[1] == specs[2] and specs[0][1] is None and specs[0][3] is None:
        return []
    lie = ", ".join(f"{name} {spec}" for name, spec in zip(("query", "key", "value"), specs, strict=True))
    return [f"cuDNN takes arrays that are divided alike, by batch and heads alone; got {lie}: blockwise takes any"]


def says(mask: Mask | None, sizes: tuple[int, int, int, int]) -> bool:
    """Whether cuDNN has words for a mask: no array of L x S entries is made for it."""
    return mask is None or _limits(mask, sizes) is not None


def words(mask: Mask, sizes: tuple[int, int, int, int]) -> Keywords:
    """The mask as keywords of jax.nn that cuDNN takes: an array where it has no words."""
    limits, (_, _, q_len, kv_len) = _limits(mask, sizes), sizes
    if limits is None:
        return {"mask": lower.allowed(mask, *sizes)}
    keywords: Keywords = {**lower.to_dot_product_attention(mask, *sizes, empty_rows="mean")}
    for name, length in (("query_seq_lengths", q_len), ("key_value_seq_lengths", kv_len)):
        if name in keywords:  # it would read beyond the end
            keywords[name] = jnp.clip(keywords[name], 0, length)
    low, high = limits
    for name in ("is_causal", "local_window_size"):
        keywords.pop(name, None)
    if high == 0:
        keywords["is_causal"] = True
    if low is not None:
        keywords["local_window_size"] = (-low, 0)
    return keywords


def _limits(mask: Mask, sizes: tuple[int, int, int, int]) -> Band | None:
    """The band low <= k - q <= high of a mask that is one but for lengths, a side that forbids nothing being None; None
    where cuDNN has no words for the mask.
    """
    found = in_words(mask)
    _, _, q_len, kv_len = sizes
    low, high = found.limits
    low = None if low is not None and low <= 1 - q_len else low
    high = None if high is not None and high >= kv_len - 1 else high
    # its windows end at the query
    possible = high == 0 or low is None and high is None
    return (low, high) if possible and not found.rest else None


def _dtype(bias: Bias) -> jnp.dtype:
    """The dtype of a bias's values."""
    if isinstance(bias, DenseBias):
        return bias.array.dtype
    place = jnp.zeros((1, 1, 1, 1), jnp.int32)
    return jnp.dtype(jax.eval_shape(lambda bias: bias.values(place, place, place, place), bias).dtype)


def _most() -> int:
    """The largest head size on the GPU at hand; on none, where one is only compiled for, that of Hopper."""
    try:
        capability = jax.devices("gpu")[0].compute_capability
    except (RuntimeError, AttributeError):
        return _MOST
    return _MOST if float(capability) >= 9 else _MOST_BEFORE


def _of_all_pairs(x: Array, lengths: tuple[int, int], more: tuple[int, int], nothing: object) -> Array:
    """x [B or 1, H or 1, L or 1, S or 1] as [B or 1, H or 1, L + more, S + more], `nothing` there."""
    x = jnp.broadcast_to(x, (*x.shape[:2], *lengths))
    return jnp.pad(x, ((0, 0), (0, 0), (0, more[0]), (0, more[1])), constant_values=nothing) if any(more) else x


def _grown(x: Array, more: int, width: int) -> Array:
    """x [B, N, H, D] with zeros: `more` rows, and up to `width` columns."""
    pads = ((0, 0), (0, more), (0, 0), (0, width - x.shape[-1]))
    return jnp.pad(x, pads) if any(map(any, pads)) else x
