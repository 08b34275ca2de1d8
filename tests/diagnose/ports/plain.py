"""Ports in plain jnp: a decoder, and one with experts. `bad` names what is done otherwise in layer `at`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Weights = Mapping[str, Array]


class Sizes(NamedTuple):
    """What a port is told of its model."""

    layers: int
    heads: int = 4
    groups: int = 2
    size: int = 8
    eps: float = 1e-5
    theta: float = 10000.0
    window: int | None = None


def below(weights: Weights, prefix: str) -> dict[str, Array]:
    """The weights of a part, by the rest of their names."""
    start = prefix + "."
    return {
        name.removeprefix(start).removesuffix(".weight"): one for name, one in weights.items() if name.startswith(start)
    }


def rms(x: Array, w: Array, eps: float, bad: str = "") -> Array:
    if bad == "eps":
        eps = 1e-3
    if bad == "mean subtracted":
        x = x - jnp.mean(x, -1, keepdims=True)
    y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + (0.0 if bad == "eps missing" else eps))
    if bad == "weight of the norm missing":
        return y
    return y * (1 + w) if bad == "one plus weight" else y * w


def rotary(x: Array, theta: float, bad: str = "") -> Array:
    """x [B, L, H, D]."""
    size = x.shape[-1]
    positions = jnp.arange(x.shape[1], dtype=x.dtype) + (1 if bad == "rotary one late" else 0)
    frequencies = (500000.0 if bad == "rotary theta" else theta) ** -(jnp.arange(0, size, 2, dtype=x.dtype) / size)
    angles = positions[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    if bad == "rotary sign":
        sin = -sin
    if bad == "rotary pairs":
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    if bad == "rotary half":
        half, rest = jnp.split(x, 2, -1)
        a, b = jnp.split(half, 2, -1)
        c, s = cos[..., : size // 4], sin[..., : size // 4]
        return jnp.concatenate((a * c - b * s, b * c + a * s, rest), -1)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def seen(padding: Array, window: int | None, bad: str = "") -> Array:
    """Which keys each query sees: bool [B, 1, L, L]."""
    length = padding.shape[1]
    q, k = jnp.arange(length)[:, None], jnp.arange(length)[None]
    see = k <= q + {"causal one ahead": 1, "causal one behind": -1}.get(bad, 0)
    if window is not None and bad != "window missing":
        see &= k > q - window - {"window one longer": 1, "window one shorter": -1}.get(bad, 0)
    if bad == "causal missing":
        see = jnp.ones_like(see)
    whole = see[None, None]
    return whole if bad == "padding forgotten" else whole & (padding != 0)[:, None, None]


def attention(p: Weights, x: Array, padding: Array, sizes: Sizes, bad: str = "") -> Array:
    batch, length, _ = x.shape
    q = (x @ p["q_proj"].T).reshape(batch, length, sizes.heads, sizes.size)
    if bad == "head order":
        q = (x @ p["q_proj"].T).reshape(batch, length, sizes.size, sizes.heads).swapaxes(2, 3)
    k, v = ((x @ p[name].T).reshape(batch, length, sizes.groups, sizes.size) for name in ("k_proj", "v_proj"))
    if bad == "key and value exchanged":
        k, v = v, k
    if bad != "rotary missing":
        q, k = rotary(q, sizes.theta, bad), rotary(k, sizes.theta, "" if bad == "rotary one late" else bad)
    if bad == "rotary of values too":
        v = rotary(v, sizes.theta)
    times = sizes.heads // sizes.groups
    k, v = (jnp.tile(t, (1, 1, times, 1)) if bad == "heads tiled" else jnp.repeat(t, times, 2) for t in (k, v))
    root = sizes.size**-0.5
    scale = {
        "scale missing": 1.0,
        "scale 1/D": 1 / sizes.size,
        "scale twice": root**2,
        "scale by width": x.shape[-1] ** -0.5,
    }
    scores = jnp.einsum("blhd,bshd->bhls", q, k) * scale.get(bad, root)
    mask = seen(padding, sizes.window, bad)
    if bad == "mask inverted":
        mask = ~mask
    if bad != "mask missing":
        scores = jnp.where(mask, scores, -8.0 if bad == "fill" else -1e30)
    if bad == "softmax in bfloat16":
        weights = jax.nn.softmax(scores.astype(jnp.bfloat16)).astype(scores.dtype)
    else:
        weights = jax.nn.softmax(scores, -2 if bad == "softmax axis" else -1)
    out = jnp.einsum("bhls,bshd->blhd", weights, v)
    if bad == "output heads transposed":
        out = out.swapaxes(2, 3)
    out = out.reshape(batch, length, -1)
    return out @ (p["o_proj"] if bad == "output kernel transposed" else p["o_proj"].T)


def gated(gate: Array, up: Array, bad: str = "") -> Array:
    if bad == "gate and up exchanged":
        gate, up = up, gate
    act = {
        "gelu for silu": jax.nn.gelu,
        "exact gelu for silu": lambda t: jax.nn.gelu(t, approximate=False),
        "relu for silu": jax.nn.relu,
    }
    return act.get(bad, jax.nn.silu)(gate) * up


def mlp(p: Weights, x: Array, bad: str = "") -> Array:
    return gated(x @ p["gate_proj"].T, x @ p["up_proj"].T, bad) @ p["down_proj"].T


def mixture(p: Weights, x: Array, bad: str = "", chosen: int = 2) -> Array:
    """Every expert of every token, and each token's sum of those it has chosen."""
    logits = x @ p["gate"].T
    if bad == "router in bfloat16":
        logits = (x.astype(jnp.bfloat16) @ p["gate"].T.astype(jnp.bfloat16)).astype(x.dtype)
    shares = jax.nn.sigmoid(logits) if bad == "sigmoid of the router" else jax.nn.softmax(logits)
    share, which = jax.lax.top_k(shares, 1 if bad == "one expert" else chosen)
    if bad != "not renormalized":
        share = share / share.sum(-1, keepdims=True)
    if bad == "experts in another order":
        which = (which + 1) % logits.shape[-1]
    if bad == "shares exchanged":
        share = share[..., ::-1]
    each = jnp.sum(jax.nn.one_hot(which, logits.shape[-1], dtype=x.dtype) * share[..., None], -2)  # [B, L, E]
    if bad == "shares left out":
        each = (each > 0).astype(x.dtype)
    gate, up = jnp.split(jnp.einsum("bld,efd->blef", x, p["experts.gate_up_proj"]), 2, -1)
    hidden = gated(gate, up, bad)
    if bad == "shares before the experts' last product":
        hidden = hidden * each[..., None]
    return jnp.einsum("blef,edf,ble->bld", hidden, p["experts.down_proj"], each)


def layer(p: Weights, x: Array, padding: Array, sizes: Sizes, bad: str = "") -> Array:
    first, second = p["input_layernorm"], p["post_attention_layernorm"]
    attend = lambda y: attention(below(p, "self_attn"), y, padding, sizes, bad)
    if bad == "norm after":
        x = x + rms(attend(x), first, sizes.eps)
    elif bad == "residual missing":
        x = attend(rms(x, first, sizes.eps))
    else:
        x = x + attend(rms(x, second if bad == "norms exchanged" else first, sizes.eps, bad))
    h = rms(x, first if bad == "norms exchanged" else second, sizes.eps)
    if bad == "router reads before the norm":
        return x + mixture(below(p, "mlp"), x)
    made = mixture(below(p, "mlp"), h, bad) if "mlp.gate" in p else mlp(below(p, "mlp"), h, bad)
    return (h if bad == "residual of the normed" else x) + made


def model(weights: Weights, ids: Array, padding: Array, *, sizes: Sizes, bad: str = "", at: int = 1) -> Array:
    x = jnp.asarray(weights["model.embed_tokens.weight"])[ids]
    if bad == "embedding scaled":
        x = x * x.shape[-1] ** 0.5
    for number in range(sizes.layers):
        mine = bad if number == at else ""
        if mine == "layer skipped":
            continue
        p = below(weights, f"model.layers.{number - 1 if mine == 'weights of another layer' else number}")
        for _ in range(2 if mine == "layer twice" else 1):
            x = layer(p, x, padding, sizes, mine)
    if bad != "final norm missing":
        x = rms(x, weights["model.norm.weight"], sizes.eps)
    return x @ jnp.asarray(weights["model.embed_tokens.weight" if bad == "head tied" else "lm_head.weight"]).T


DECODER = Sizes(3)
EXPERTS = Sizes(2, theta=1e6, window=5)
