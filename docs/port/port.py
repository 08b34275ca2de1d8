"""A port of original.py to JAX, with two faults that such ports have."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from original import module

params = jax.tree.map(jnp.asarray, {name: one.detach().numpy() for name, one in module.named_parameters()})


def linear(p: dict[str, Array], name: str, x: Array) -> Array:
    """x [..., E] -> [..., F]."""
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def norm(p: dict[str, Array], name: str, x: Array, eps: float = 1e-5) -> Array:
    """x [..., E], normalized."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(p: dict[str, Array], name: str, x: Array, heads: int) -> Array:
    """Causal self-attention, x [B, L, E]."""
    batch, length, width = x.shape
    q, k, v = jnp.split(linear(p, f"{name}.qkv", x).reshape(batch, length, -1, width // heads), 3, axis=2)
    scores = jnp.einsum("blhd,bshd->bhls", q, k) * width**-0.5
    causal = jnp.tril(jnp.ones((length, length), bool))  # True = may attend
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return linear(p, f"{name}.out", jnp.einsum("bhls,bshd->blhd", weights, v).reshape(x.shape))


def forward(p: dict[str, Array], tokens: Array, heads: int = 4, layers: int = 2) -> Array:
    """Logits [B, L, V] of tokens [B, L]."""
    x = p["embed.weight"][tokens]
    for n in range(layers):
        x = x + attention(p, f"blocks.{n}.attention", norm(p, f"blocks.{n}.norm1", x), heads)
        hidden = jax.nn.gelu(linear(p, f"blocks.{n}.up", norm(p, f"blocks.{n}.norm2", x)))
        x = x + linear(p, f"blocks.{n}.down", hidden)
    return linear(p, "head", norm(p, "norm", x))


model = functools.partial(forward, params)
