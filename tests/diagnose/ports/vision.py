"""A port of ViT in Equinox, written for one image. `bad` names what is done otherwise in layer `at`."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from tests.diagnose.ports.plain import Weights, below


def _of(kind: Callable[..., eqx.Module], w: Array, b: Array | None, *args: object, **more: object) -> eqx.Module:
    """A module of Equinox with these weights."""
    made = eqx.filter_eval_shape(kind, *args, **more)
    return eqx.tree_at(lambda one: (one.weight, one.bias), made, (jnp.asarray(w), b), is_leaf=lambda one: one is None)


def linear(p: Weights, name: str, bad: str = "") -> eqx.Module:
    w = p[name if name in p else f"{name}.weight"]
    w = w.T if bad == "kernel transposed" else w
    return _of(eqx.nn.Linear, w, jnp.asarray(p[f"{name}.bias"]), w.shape[1], w.shape[0], key=jax.random.key(0))


def norm(p: Weights, name: str, eps: float = 1e-12) -> eqx.Module:
    return _of(eqx.nn.LayerNorm, p[name], jnp.asarray(p[f"{name}.bias"]), p[name].shape, eps=eps)


class Attention(eqx.Module):
    q: eqx.Module
    k: eqx.Module
    v: eqx.Module
    out: eqx.Module
    heads: int = eqx.field(static=True)
    bad: str = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        split = lambda module: jax.vmap(module)(x).reshape(x.shape[0], self.heads, -1)
        q, k, v = split(self.q), split(self.k), split(self.v)
        if self.bad == "head order":
            q = jax.vmap(self.q)(x).reshape(x.shape[0], -1, self.heads).swapaxes(1, 2)
        scale = {"scale missing": 1.0, "scale 1/D": 1 / q.shape[-1], "scale twice": 1 / q.shape[-1]}.get(
            self.bad, q.shape[-1] ** -0.5
        )
        scores = jnp.einsum("qhd,khd->hqk", q, k) * scale
        if self.bad == "causal":
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -jnp.inf)
        weights = jax.nn.softmax(scores, 0 if self.bad == "softmax over heads" else -1)
        return jax.vmap(self.out)(jnp.einsum("hqk,khd->qhd", weights, v).reshape(x.shape))


class Layer(eqx.Module):
    before: eqx.Module
    after: eqx.Module
    attention: Attention
    up: eqx.Module
    down: eqx.Module
    bad: str = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        act = {"tanh gelu": jax.nn.gelu, "silu": jax.nn.silu}.get(self.bad, lambda y: jax.nn.gelu(y, approximate=False))
        x = x + self.attention(jax.vmap(self.before)(x))
        h = x if self.bad == "second norm missing" else jax.vmap(self.after)(x)
        made = jax.vmap(self.down)(act(jax.vmap(self.up)(h)))
        return made if self.bad == "residual missing" else x + made


class Vision(eqx.Module):
    patches: eqx.Module
    token: Array
    positions: Array
    layers: list[Layer]
    norm: eqx.Module
    head: eqx.Module
    bad: str = eqx.field(static=True)

    def one(self, image: Array) -> Array:
        x = self.patches(image)  # [D, rows, columns]
        x = (x.swapaxes(1, 2) if self.bad == "patches by columns" else x).reshape(x.shape[0], -1).T
        x = jnp.concatenate((x, self.token) if self.bad == "class token last" else (self.token, x))
        if self.bad == "positions one late":
            x = x + jnp.roll(self.positions, -1, 0)
        elif self.bad != "positions missing":
            x = x + self.positions
        for layer in self.layers:
            x = layer(x)
        x = x if self.bad == "final norm missing" else jax.vmap(self.norm)(x)
        return self.head(x.mean(0) if self.bad == "pooled mean" else x[-1 if self.bad == "pooled last" else 0])

    def __call__(self, images: Array) -> Array:
        return jax.vmap(self.one)(images)


def vision(p: Weights, *, layers: int = 2, heads: int = 3, bad: str = "", at: int = 1) -> Vision:
    """The port with a model's weights."""
    e = below(p, "vit.embeddings")
    w, b = e["patch_embeddings.projection"], e["patch_embeddings.projection.bias"]
    if bad == "patch kernel transposed":
        w = w.swapaxes(2, 3)
    if bad == "channels backwards":
        w = w[:, ::-1]
    patches = _of(eqx.nn.Conv2d, w, jnp.asarray(b)[:, None, None], 3, w.shape[0], 4, 4, key=jax.random.key(0))

    def layer(number: int) -> Layer:
        mine = bad if number == at else ""
        q = below(p, f"vit.layers.{number}")
        of = lambda name: linear(
            q, f"attention.{name}_proj", "kernel transposed" if mine == f"{name} kernel transposed" else ""
        )
        names = ("q", "v", "k", "o") if mine == "key and value exchanged" else ("q", "k", "v", "o")
        attention = Attention(*map(of, names), heads, mine)
        norms = norm(q, "layernorm_before", 1e-5 if mine == "eps" else 1e-12), norm(q, "layernorm_after")
        return Layer(*norms, attention, linear(q, "mlp.fc1"), linear(q, "mlp.fc2"), mine)

    token, positions = jnp.asarray(e["cls_token"][0]), jnp.asarray(e["position_embeddings"][0])
    return Vision(
        patches, token, positions, [layer(i) for i in range(layers)],
        norm(below(p, "vit"), "layernorm"), linear(p, "classifier"), bad,
    )  # fmt: skip
