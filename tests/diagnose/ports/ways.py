"""Right ports written differently: the decoder in plain jnp with one thing or several done in another way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from tests.diagnose.ports import plain
from tests.diagnose.ports.plain import DECODER, Weights, below

HEADS, GROUPS, SIZE = DECODER.heads, DECODER.groups, DECODER.size

#: What is done otherwise, each by itself and some together.
WAYS: tuple[frozenset[str], ...] = tuple(
    frozenset(way.split(", "))
    for way in (
        "fused products", "scan", "remat", "jit", "scaled queries", "divided scores", "grouped heads", "flat tokens",
        "rows by vmap", "heads by vmap", "bfloat16 storage", "-inf", "-1e9 added", "finfo.min", "softmax by hand",
        "one-hot", "custom_jvp", "complex rotary", "matmul", "jax.nn attention", "float32 inside",
        "scan, remat, jit, fused products, grouped heads, flat tokens, scaled queries",
        "rows by vmap, scan, softmax by hand, finfo.min, one-hot",
    )
)  # fmt: skip


@jax.custom_jvp
def silu(x: Array) -> Array:
    return x / (1 + jnp.exp(-x))


@silu.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    s = jax.nn.sigmoid(x)
    return x * s, t * s * (1 + x * (1 - s))


def rotary(x: Array, ways: frozenset[str]) -> Array:
    if "complex rotary" not in ways:
        return plain.rotary(x, DECODER.theta)
    angles = jnp.arange(x.shape[1])[:, None] * DECODER.theta ** -(jnp.arange(0, SIZE, 2) / SIZE)
    turned = (x[..., : SIZE // 2] + 1j * x[..., SIZE // 2 :]) * jnp.exp(1j * angles)[:, None]
    return jnp.concatenate((turned.real, turned.imag), -1)


def softmax(scores: Array, ways: frozenset[str]) -> Array:
    if "softmax by hand" not in ways:
        return jax.nn.softmax(scores)
    raised = jnp.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def masked(scores: Array, see: Array, ways: frozenset[str]) -> Array:
    if "-1e9 added" in ways:
        return scores + (1.0 - see.astype(scores.dtype)) * -1e9
    low = -jnp.inf if "-inf" in ways else jnp.finfo(jnp.float32).min if "finfo.min" in ways else -1e30
    return jnp.where(see, scores, low)


def attend(q: Array, k: Array, v: Array, see: Array, ways: frozenset[str]) -> Array:
    """q [B, L, H, D], k and v [B, L, G, D]."""
    if "jax.nn attention" in ways:
        return jax.nn.dot_product_attention(q, k, v, mask=see)
    root = SIZE**-0.5
    if "scaled queries" in ways:
        q, root = q * root, 1.0
    finish = lambda s: softmax(masked(s / SIZE**0.5 if "divided scores" in ways else s * root, see, ways), ways)
    times = HEADS // GROUPS
    if "grouped heads" in ways:
        q = q.reshape(*q.shape[:2], GROUPS, times, SIZE)
        scores = jnp.einsum("blgrd,bsgd->bgrls", q, k)
        see = see[:, None]
        return jnp.einsum("bgrls,bsgd->blgrd", finish(scores), v).reshape(*q.shape[:2], HEADS, SIZE)
    k, v = jnp.repeat(k, times, 2), jnp.repeat(v, times, 2)
    if "matmul" in ways:
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        return (finish(q @ k.swapaxes(-1, -2)) @ v).swapaxes(1, 2)
    if "heads by vmap" in ways:
        see = see[:, 0]
        one = lambda q, k, v: finish(q @ k.swapaxes(-1, -2)) @ v
        return jax.vmap(one, 2, 2)(q, k, v)
    return jnp.einsum("bhls,bshd->blhd", finish(jnp.einsum("blhd,bshd->bhls", q, k)), v)


def product(p: Weights, x: Array, names: tuple[str, ...], ways: frozenset[str]) -> list[Array]:
    """x times several kernels."""
    if "fused products" not in ways:
        return [x @ p[name].T for name in names]
    sizes = [p[name].shape[0] for name in names]
    made = x @ jnp.concatenate([p[name].T for name in names], -1)
    return jnp.split(made, [sum(sizes[: at + 1]) for at in range(len(sizes) - 1)], -1)


def rms(x: Array, w: Array, ways: frozenset[str]) -> Array:
    if "float32 inside" not in ways:
        return plain.rms(x, w, DECODER.eps)
    wide = x.astype(jnp.float32)
    return (wide / jnp.sqrt(jnp.square(wide).mean(-1, keepdims=True) + DECODER.eps)).astype(x.dtype) * w


def layer(p: Weights, x: Array, see: Array, ways: frozenset[str]) -> Array:
    batch, length, width = x.shape
    a, m = below(p, "self_attn"), below(p, "mlp")
    names = ("q_proj", "k_proj", "v_proj")
    heads = [y.reshape(batch, length, -1, SIZE) for y in product(a, rms(x, p["input_layernorm"], ways), names, ways)]
    out = attend(rotary(heads[0], ways), rotary(heads[1], ways), heads[2], see, ways)
    x = x + out.reshape(batch, length, -1) @ a["o_proj"].T
    h = rms(x, p["post_attention_layernorm"], ways)
    h = h.reshape(-1, width) if "flat tokens" in ways else h
    gate, up = product(m, h, ("gate_proj", "up_proj"), ways)
    act = silu if "custom_jvp" in ways else jax.nn.silu
    return x + ((act(gate) * up) @ m["down_proj"].T).reshape(x.shape)


def decoder(weights: Weights, ids: Array, padding: Array, *, ways: frozenset[str]) -> Array:
    """The decoder, in these ways."""
    if "rows by vmap" in ways:
        inner = ways - {"rows by vmap"}
        return jax.vmap(lambda i, m: decoder(weights, i[None], m[None], ways=inner)[0])(ids, padding)
    if "bfloat16 storage" in ways:
        weights = {name: jnp.asarray(one, jnp.bfloat16) for name, one in weights.items()}
    else:
        weights = {name: jnp.asarray(one) for name, one in weights.items()}
    table = weights["model.embed_tokens.weight"]
    x = jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype) @ table if "one-hot" in ways else jnp.take(table, ids, 0)
    if "bfloat16 storage" in ways:
        weights = {name: one.astype(jnp.float32) for name, one in weights.items()}
        x = x.astype(jnp.float32)
    see = plain.seen(padding, None)
    step = lambda x, p: layer(p, x, see, ways)
    step = jax.checkpoint(step) if "remat" in ways else step
    step = jax.jit(step) if "jit" in ways else step
    each = [below(weights, f"model.layers.{number}") for number in range(DECODER.layers)]
    if "scan" in ways:
        x = jax.lax.scan(lambda x, p: (step(x, p), None), x, jax.tree.map(lambda *one: jnp.stack(one), *each))[0]
    else:
        for p in each:
            x = step(x, p)
    return rms(x, weights["model.norm.weight"], ways) @ weights["lm_head.weight"].T
