"""The fused kernel: what each platform's vendor gives, called with what the mask says in the vendor's own words.

On CPUs and GPUs that is `jax.nn.dot_product_attention` (cuDNN for 16-bit inputs on a GPU), on TPUs Splash attention
(`splash.py`). What a vendor's function cannot express is refused by name. Its errors are the vendor's own.

Two things are made good, since the vendors leave them open: a row that may attend to nothing gives 0 (jax.nn gives it
the average of all values), and keys and values that no query of their batch row may attend to are taken as 0, so that
what is not finite in them reaches nothing.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskattn import schedule
from maskattn._call import are_numbers
from maskattn.attention import Call
from maskattn.biases import DenseBias
from maskattn.masks import Mask
from maskattn.typing import NumPyArray
from maskattn_jax import lower
from maskattn_jax._mesh import automatic_inside
from maskattn_jax._platform import platform
from maskattn_jax.kernels.fused import cudnn, splash
from maskattn_jax.lower.words import in_words, reached
from maskattn_jax.types import Given

#: Where the parity suite must not expect what the other kernels promise.
CONVENTIONS = {"lse": "none", "narrow": "rounded inside"}


@automatic_inside
def attention(call: Call[Array]) -> tuple[Array, None]:
    """The vendor's attention: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], no lse."""
    query, key, value = call.query, call.key, call.value
    on = platform(query, key, value)
    on_cudnn = on == "gpu" and not cudnn.unsupported(call)
    mask, bias = (lower.opaque(node, query, key, value) for node in (call.mask, call.bias))
    added = None if bias is None else lower.bias(bias, *call.sizes)
    kept: Array | None = None
    rows: Given | None
    keys: Given | None
    if added is not None and isinstance(bias, DenseBias):  # which may forbid by -inf
        finite, allowed = jnp.not_equal(added, -jnp.inf), lower.allowed(mask, *call.sizes)
        kept = finite if allowed is None else finite & allowed
        added = jnp.where(kept, added, 0)
        rows, keys = jnp.any(kept, -1), jnp.any(kept, -2)
    else:
        rows, keys = _reached(mask, call.sizes)
    if bias is None and (count := _first_only(keys)) is not None:
        key, value, keys = key[:, :count], value[:, :count], None
    key, value = _cleared(key, keys), _cleared(value, keys)
    width, v_dim = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    query, key, value = (_widened(x, width) for x in (query, key, value))
    sizes = (*call.sizes[:3], key.shape[1])
    if on == "tpu":
        out = splash.attention(replace(call, query=query, key=key, value=value))
    else:
        keywords = {"mask": kept} if kept is not None else _keywords(mask, sizes, call.is_sized, on_cudnn)
        if added is not None:
            keywords["bias"] = added
        if on_cudnn:
            out = cudnn.attention(query, key, value, call.scale, keywords)
        else:
            with jax.default_matmul_precision(call.precision):
                out = jax.nn.dot_product_attention(
                    query, key, value, scale=call.scale, implementation="xla", **keywords
                )
    out = out[..., :v_dim]
    if rows is not None:
        empty = jnp.swapaxes(~rows, 1, 2)[..., None]
        out = jnp.where(empty, jnp.nan if call.empty_rows == "nan" else 0, out)
    return out, None


def _keywords(mask: Mask | None, sizes: tuple[int, int, int, int], is_sized: bool, on_cudnn: bool) -> cudnn.Keywords:
    """The mask as keywords of jax.nn: an array where they have no words for it."""
    if mask is None:
        return {}
    if on_cudnn:
        return cudnn.words(mask, sizes)
    if not is_sized:
        return {"mask": lower.allowed(mask, *sizes)}
    return {**lower.to_dot_product_attention(mask, *sizes, empty_rows="mean")}


def unsupported(call: Call[Array]) -> list[str]:
    """Everything that the vendor's function on this platform cannot express; [] where it runs the call."""
    reasons = []
    on = platform(call.query, call.key, call.value)
    name = "Splash attention" if on == "tpu" else "jax.nn.dot_product_attention"
    if call.dropout_rate:
        reasons.append(f"{name} has no dropout from a key")
    if call.return_lse:
        reasons.append(f"return_lse: {name} gives no log-sum-exp in float32 that has a gradient")
    if call.empty_rows == "mean":
        reasons.append('empty_rows="mean": only "reference" and "exact" average all values')
    if call.query.dtype == jnp.float64:
        reasons.append(f"{name} computes the softmax of float64 inputs in float32")
    query, key = call.query.shape, call.key.shape
    if 0 in (*query, *key):
        reasons.append(f"{name} takes no empty arrays, got query {query} and key {key}")
    if on == "tpu":
        return reasons + splash.unsupported(call)
    if call.query.dtype == jnp.float16 and on != "gpu":
        reasons.append(f"{name} computes float16 on GPUs only")
    if call.sinks is not None:
        reasons.append(f"{name} has no sinks")
    if call.softcap is not None:
        reasons.append(f"{name} has no softcap")
    return reasons + (cudnn.misplaced(call) if on == "gpu" and not cudnn.unsupported(call) else [])


def _widened(x: Array, width: int) -> Array:
    """x [..., D] with zeros up to [..., width]: the vendors want keys and values of one width."""
    return jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) if x.shape[-1] < width else x


def _reached(mask: Mask | None, sizes: tuple[int, int, int, int]) -> tuple[Given | None, Given | None]:
    """Which rows may attend to something, bool [B, H, L], and which keys something may attend to, bool [B, H, S].

    Axes that the mask does not read have size 1. None where all are.
    """
    if mask is None:
        return None, None
    if not mask.flatten()[0] and are_numbers(sizes):
        rows, keys = _reached_statically(mask, sizes)
        return (None if rows.all() else rows), (None if keys.all() else keys)
    words = in_words(mask)
    if not words.rest:
        return reached(words, sizes)
    allowed = lower.allowed(mask, *sizes)
    if allowed is None:
        return None, None
    return jnp.any(allowed, -1), jnp.any(allowed, -2)


def _first_only(keys: Given | None) -> int | None:
    """How many keys are reached, where they are the first ones in every batch row and head, and that is known."""
    if not isinstance(keys, np.ndarray) or keys.shape[:2] != (1, 1):
        return None
    count = int(keys.sum())
    return count if count and keys[0, 0, :count].all() else None


def _cleared(x: Array, keys: Given | None) -> Array:
    """x [B, S, K, D] with 0 at the keys that nothing may attend to; `keys` bool [B or 1, H or 1, S or 1], or None."""
    if keys is None:
        return x
    keys = jnp.asarray(keys)
    kv_heads = x.shape[2]
    if keys.shape[1] > 1:  # head h reads key/value head h // (H // K)
        keys = jnp.any(keys.reshape(keys.shape[0], kv_heads, -1, keys.shape[2]), 2)
    return jnp.where(jnp.swapaxes(keys, 1, 2)[..., None], x, 0)


@functools.lru_cache(maxsize=64)
def _reached_statically(mask: Mask, sizes: tuple[int, int, int, int]) -> tuple[NumPyArray, ...]:
    return schedule.reached(mask, *sizes)
