"""The reference kernel: dense, written to be read beside the formula.

    x = softcap(scale * q.k) + bias        p = exp(x - max x) / sum exp(x - max x)        out = p v

(Vaswani et al. 2017, eq. 1.) Everything is computed in float32 (float64 for float64 inputs) and rounded once, at the
end.

What is masked out never leaks: a forbidden pair's logit is replaced before anything is computed from it, and the two
products below, with their derivatives, take a weight of exactly 0 to contribute exactly 0, whatever it meets. Both have
derivatives of every order in reverse mode.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.attention import Call
from maskattn_jax import lower
from maskattn_jax.dropout import dense


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend densely: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H]."""
    query, key, value, sinks = call.query, call.key, call.value, call.sinks
    dtype = jnp.float64 if query.dtype == jnp.float64 else jnp.float32
    batch, heads, q_len, kv_len = sizes = call.sizes
    kv_heads = key.shape[2]

    q = _heads_first(query.astype(dtype))
    k = _heads_first(key.astype(dtype))
    v = _heads_first(value.astype(dtype))

    allowed = lower.allowed(lower.opaque(call.mask, query, key, value), *sizes)
    allowed = jnp.ones((1, 1, 1, kv_len), bool) if allowed is None else allowed
    added = lower.bias(lower.opaque(call.bias, query, key, value), *sizes)
    if added is not None:
        added = added.astype(dtype)
        allowed = allowed & (added != -jnp.inf)
    allowed = jnp.broadcast_to(allowed, (*allowed.shape[:3], kv_len))

    # head h reads key/value head h // (H // K): the queries of one group are stacked, so k and v are never repeated
    logits = _ungroup(pair_products(_group(q, kv_heads), k, call.precision), sizes)
    logits = jnp.where(allowed, call.scale * logits, 0)
    if call.softcap is not None:
        logits = call.softcap * jnp.tanh(logits / call.softcap)
    if added is not None:
        logits = logits + jnp.where(allowed, added, 0)
    logits = jnp.where(allowed, logits, -jnp.inf)

    highest = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    sink = None if sinks is None else sinks.astype(dtype)[None, :, None, None]
    if sink is not None:
        highest = jnp.maximum(highest, sink)
    highest = jax.lax.stop_gradient(jnp.where(highest == -jnp.inf, 0, highest))
    e = jnp.exp(logits - highest)
    total = jnp.sum(e, axis=-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink - highest)
    empty = ~jnp.any(allowed, axis=-1, keepdims=True) & (total == 0)
    total = jnp.where(empty, 1, total)
    p = jnp.where(allowed, e / total, 0)
    lse = jnp.where(empty, -jnp.inf, highest + jnp.log(total))

    if call.empty_rows == "mean" and sink is None and kv_len:
        p = jnp.where(empty, 1 / kv_len, p)
    dropout = call.dropout
    if dropout is not None:
        p = jnp.where(dense(dropout, sizes), p / (1.0 - dropout.rate), 0)
    out = _ungroup(weighted_sum(_group(p, kv_heads), v, call.precision), (batch, heads, q_len, v.shape[-1]))
    if call.empty_rows == "nan" and sink is None:
        out = jnp.where(empty, jnp.nan, out)
    return _heads_first(out).astype(query.dtype), jnp.swapaxes(lse[..., 0], 1, 2)


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: it runs every call."""
    return []


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def pair_products(a: Array, b: Array, precision: str) -> Array:
    """a [..., M, D], b [..., N, D] -> [..., M, N]: the product of every row of `a` with every row of `b`.

    What is not finite stays in its own row and column; in the derivative, a pair whose cotangent is 0 contributes 0.
    """
    return jnp.matmul(a, jnp.swapaxes(b, -1, -2), precision=precision)


def _pair_products_forward(a: Array, b: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return pair_products(a, b, precision), (a, b)


def _pair_products_backward(precision: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    a, b = saved
    return weighted_sum(cotangent, b, precision), weighted_sum(jnp.swapaxes(cotangent, -1, -2), a, precision)


pair_products.defvjp(_pair_products_forward, _pair_products_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def weighted_sum(weights: Array, rows: Array, precision: str) -> Array:
    """weights [..., M, N], rows [..., N, D] -> [..., M, D], where a weight of exactly 0 contributes exactly +0.

    The finite parts are multiplied; the result is NaN where a weight that is not 0 meets a value that is not finite, or
    a weight is itself not finite. No result is -0.
    """
    strange_weight, strange_value = ~jnp.isfinite(weights), ~jnp.isfinite(rows)
    product = jnp.matmul(jnp.where(strange_weight, 0, weights), jnp.where(strange_value, 0, rows), precision=precision)
    met = jnp.matmul((weights != 0).astype(rows.dtype), strange_value.astype(rows.dtype)) > 0
    met = met | jnp.any(strange_weight, axis=-1, keepdims=True)
    return jnp.where(met, jnp.nan, jnp.where(product == 0, 0, product))


def _weighted_sum_forward(weights: Array, rows: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return weighted_sum(weights, rows, precision), (weights, rows)


def _weighted_sum_backward(precision: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    weights, rows = saved
    d_rows = weighted_sum(jnp.swapaxes(weights, -1, -2), cotangent, precision)
    return pair_products(cotangent, rows, precision), d_rows


weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _heads_first(x: Array) -> Array:
    """[B, length, heads, D] <-> [B, heads, length, D]."""
    return jnp.swapaxes(x, 1, 2)


def _group(x: Array, kv_heads: int) -> Array:
    """[B, H, L, N] -> [B, K, H // K * L, N]: the rows that read one key/value head, one after the other."""
    batch, heads, length, width = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads * length, width)


def _ungroup(x: Array, shape: tuple[int, ...]) -> Array:
    """[B, K, H // K * L, N] -> [B, H, L, N]."""
    return x.reshape(shape)
