"""A port of BERT in Flax NNX. `bad` names what is done otherwise in layer `at`, or around the layers."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from tests.diagnose.ports.plain import Weights, below


def linear(p: Weights, name: str, bad: str = "") -> nnx.Linear:
    w, b = jnp.asarray(p[name if name in p else f"{name}.weight"]), jnp.asarray(p[f"{name}.bias"])
    kernel = w if bad == "kernel transposed" else w.T
    return nnx.Linear(
        *kernel.shape,
        use_bias=bad != "bias missing",
        kernel_init=lambda *_: kernel,
        bias_init=lambda *_: b,
        rngs=nnx.Rngs(0),
    )


def norm(p: Weights, name: str, bad: str = "") -> nnx.LayerNorm:
    w, b = jnp.asarray(p[name]), jnp.asarray(p[f"{name}.bias"])
    made = nnx.LayerNorm(
        w.size, epsilon=1e-5 if bad == "eps" else 1e-12, use_bias=bad != "bias of the norm missing",
        scale_init=lambda *_: w, bias_init=lambda *_: b, use_fast_variance=False, rngs=nnx.Rngs(0),
    )  # fmt: skip
    return made


class Attention(nnx.Module):
    def __init__(self, p: Weights, heads: int, bad: str) -> None:
        self.query = linear(p, "self.query", "bias missing" if bad == "bias of queries missing" else "")
        self.key, self.value = linear(p, "self.key"), linear(p, "self.value")
        if bad == "query and key exchanged":
            self.query, self.key = self.key, self.query
        self.out = linear(p, "output.dense", "kernel transposed" if bad == "output kernel transposed" else "")
        self.heads, self.bad = heads, bad

    def __call__(self, x: Array, padding: Array) -> Array:
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scale = q.shape[-1] ** -0.5 if self.bad != "scale by width" else x.shape[-1] ** -0.5
        scores = jnp.einsum("blhd,bshd->bhls", q, k) * (1.0 if self.bad == "scale missing" else scale)
        keys = (padding == 0 if self.bad == "padding inverted" else padding != 0)[:, None, None]
        if self.bad == "padding forgotten":
            keys = jnp.ones_like(keys)
        if self.bad == "padding of queries":
            keys = keys.swapaxes(-1, -2)
        if self.bad == "causal":
            keys = keys & jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(keys, scores, 0.0 if self.bad == "fill" else jnp.finfo(scores.dtype).min)
        weights = nnx.softmax(scores)
        if self.bad == "dropout":
            weights = nnx.Dropout(0.3, rngs=nnx.Rngs(0))(weights)
        out = jnp.einsum("bhls,bshd->blhd", weights, v)
        if self.bad == "heads in another order":
            out = out[:, :, ::-1]
        return self.out(out.reshape(x.shape))


class Layer(nnx.Module):
    def __init__(self, p: Weights, heads: int, bad: str) -> None:
        self.attention = Attention(below(p, "attention"), heads, bad)
        self.first = norm(p, "attention.output.LayerNorm", bad)
        self.up, self.down = linear(p, "intermediate.dense"), linear(p, "output.dense")
        self.second = norm(p, "output.LayerNorm")
        self.bad = bad

    def __call__(self, x: Array, padding: Array) -> Array:
        act = {"tanh gelu": nnx.gelu, "relu": nnx.relu}.get(self.bad, lambda y: nnx.gelu(y, approximate=False))
        if self.bad == "norm before":
            x = x + self.attention(self.first(x), padding)
            return x + self.down(act(self.up(self.second(x))))
        x = self.first(x + self.attention(x, padding))
        made = self.down(act(self.up(x)))
        return self.second(made if self.bad == "residual missing" else x + made)


class Encoder(nnx.Module):
    def __init__(self, p: Weights, *, layers: int = 2, heads: int = 3, bad: str = "", at: int = 1) -> None:
        e = below(p, "embeddings")
        table = lambda name: nnx.Embed(*e[name].shape, embedding_init=lambda *_: jnp.asarray(e[name]), rngs=nnx.Rngs(0))
        self.words, self.positions = table("word_embeddings"), table("position_embeddings")
        self.types = table("token_type_embeddings")
        self.norm = norm(e, "LayerNorm")
        self.layers = nnx.List(
            Layer(below(p, f"encoder.layer.{i}"), heads, bad if i == at else "") for i in range(layers)
        )
        self.pooler = linear(p, "pooler.dense")
        self.bad = bad

    def __call__(self, ids: Array, padding: Array, types: Array) -> tuple[Array, Array]:
        places = jnp.arange(ids.shape[1]) + (2 if self.bad == "positions two late" else 0)
        x = self.words(ids)
        if self.bad != "positions missing":
            x = x + self.positions(places)
        if self.bad != "types missing":
            x = x + self.types(jnp.zeros_like(types) if self.bad == "types all zero" else types)
        if self.bad != "norm of the embeddings missing":
            x = self.norm(x)
        for layer in self.layers:
            x = layer(x, padding)
        pooled = self.pooler(x.mean(1) if self.bad == "pooled mean" else x[:, -1 if self.bad == "pooled last" else 0])
        return x, pooled if self.bad == "tanh of the pooler missing" else jnp.tanh(pooled)
