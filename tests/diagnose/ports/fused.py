"""A port of GPT-2 in plain jnp: one product for queries, keys and values. `bad` names what is done otherwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from tests.diagnose.ports.plain import Weights, below

HEADS, LAYERS = 3, 2


def norm(p: Weights, name: str, x: Array, bad: frozenset[str]) -> Array:
    apart = x - x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True, ddof=1 if "unbiased variance" in bad else 0)
    return apart / jnp.sqrt(variance + 1e-5) * p[name] + p[f"{name}.bias"]


def linear(p: Weights, name: str, x: Array) -> Array:
    return x @ p[name] + p[f"{name}.bias"]


def heads(made: Array, bad: frozenset[str]) -> list[Array]:
    """Queries, keys and values [B, L, H, D] of a product [B, L, 3 H D]."""
    batch, length, width = made.shape
    if "head by head" in bad:
        each = made.reshape(batch, length, HEADS, 3, -1)
        return [each[:, :, :, part] for part in range(3)]
    parts = [part.reshape(batch, length, HEADS, -1) for part in jnp.split(made, 3, -1)]
    return [parts[1], parts[0], parts[2]] if "keys first" in bad else parts


def attention(p: Weights, x: Array, padding: Array, bad: frozenset[str]) -> Array:
    q, k, v = heads(linear(p, "c_attn", x), bad)
    scores = jnp.einsum("blhd,bshd->bhls", q, k) * (1 if "no scale" in bad else q.shape[-1] ** -0.5)
    see = jnp.tri(x.shape[1], k=1 if "one ahead" in bad else 0, dtype=bool) & (padding != 0)[:, None, None]
    weights = jax.nn.softmax(jnp.where(see, scores, -1e30))
    return linear(p, "c_proj", jnp.einsum("bhls,bshd->blhd", weights, v).reshape(x.shape))


def mlp(p: Weights, x: Array, bad: frozenset[str]) -> Array:
    return linear(p, "c_proj", jax.nn.gelu(linear(p, "c_fc", x), approximate="exact gelu" not in bad))


def model(weights: Weights, ids: Array, padding: Array, *, bad: frozenset[str] = frozenset(), at: int = 1) -> Array:
    """The port, with several faults at once in layer `at`, or around the layers."""
    weights = {name: jnp.asarray(one) for name, one in weights.items()}
    p = below(weights, "transformer")
    x = p["wte"][ids] + p["wpe"][jnp.arange(ids.shape[1])]
    for number in range(LAYERS):
        q, mine = below(p, f"h.{number}"), bad if number == at else frozenset[str]()
        made = attention(below(q, "attn"), norm(q, "ln_1", x, mine), padding, mine)
        second = norm(q, "ln_2", x if "in parallel" in mine else x + made, mine)
        x = x + made + mlp(below(q, "mlp"), second, mine)
    logits = norm(p, "ln_f", x, frozenset()) @ weights["lm_head.weight"].T
    return jax.nn.log_softmax(logits) if "log_softmax" in bad else logits
