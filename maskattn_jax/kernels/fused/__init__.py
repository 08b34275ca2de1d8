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
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskattn import schedule
from maskattn._call import are_numbers
from maskattn.attention import Call
from maskattn.biases import DenseBias
from maskattn.masks import Mask
from maskattn.typing import NumPyArray
from maskattn_jax import lower
from maskattn_jax._mesh import automatic_inside
from maskattn_jax.kernels.fused import splash
from maskattn_jax.types import Given

#: Where the parity suite must not expect what the other kernels promise.
CONVENTIONS = {"lse": "none", "narrow": "rounded inside"}


@automatic_inside
def attention(call: Call[Array]) -> tuple[Array, None]:
    """The vendor's attention: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], no lse."""
    query, key, value, sizes = call.query, call.key, call.value, call.sizes
    mask, bias = (lower.opaque(node, query, key, value) for node in (call.mask, call.bias))
    keywords: dict[str, Any] = {}
    if isinstance(bias, DenseBias):  # which may forbid by -inf
        added: Any = lower.bias(bias, *sizes)
        kept, allowed = lower.allowed(mask, *sizes), added != -jnp.inf
        allowed = allowed if kept is None else allowed & kept
        keywords = {"bias": jnp.where(allowed, added, 0), "mask": allowed}
        reached: tuple[Given | None, Given | None] = jnp.any(allowed, -1), jnp.any(allowed, -2)
    else:
        reached = _reached(mask, sizes)
    rows, keys = reached
    key, value = _cleared(key, keys), _cleared(value, keys)
    width, v_dim = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    query, key, value = (_widened(x, width) for x in (query, key, value))
    if platform() == "tpu":
        out = splash.attention(replace(call, query=query, key=key, value=value))
    else:
        if not keywords and mask is not None and not call.is_sized:
            keywords = {"mask": lower.allowed(mask, *sizes)}
        elif not keywords and mask is not None:
            keywords = {**lower.to_dot_product_attention(mask, *sizes, empty_rows="mean")}
        if bias is not None and "bias" not in keywords:
            keywords["bias"] = lower.bias(bias, *sizes)
        half = query.dtype in (jnp.bfloat16, jnp.float16)
        # a bias keeps its dtype: cuDNN, which would have it in the inputs', does not get one that is wider
        exact = bias is None or keywords["bias"].dtype == query.dtype
        with jax.default_matmul_precision(call.precision):
            out = jax.nn.dot_product_attention(
                query,
                key,
                value,
                scale=call.scale,
                implementation="cudnn" if half and exact and platform() == "gpu" else "xla",
                **keywords,
            )
    out = out[..., :v_dim]
    if rows is not None:
        empty = jnp.swapaxes(~rows, 1, 2)[..., None]
        out = jnp.where(empty, jnp.nan if call.empty_rows == "nan" else 0, out)
    return out, None


def unsupported(call: Call[Array]) -> list[str]:
    """Everything that the vendor's function on this platform cannot express; [] where it runs the call."""
    reasons = []
    name = "Splash attention" if platform() == "tpu" else "jax.nn.dot_product_attention"
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
    if platform() == "tpu":
        return reasons + splash.unsupported(call)
    if call.query.dtype == jnp.float16 and platform() != "gpu":
        reasons.append(f"{name} computes float16 on GPUs only")
    if call.sinks is not None:
        reasons.append(f"{name} has no sinks")
    if call.softcap is not None:
        reasons.append(f"{name} has no softcap")
    return reasons


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
    allowed = lower.allowed(mask, *sizes)
    if allowed is None:
        return None, None
    return jnp.any(allowed, -1), jnp.any(allowed, -2)


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


def platform() -> str:
    """Where what is traced now will run: "cpu", "gpu" or "tpu"."""
    return jax.default_backend()
