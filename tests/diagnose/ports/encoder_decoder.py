"""A port of T5 in Linen. `bad` names what is done otherwise in a layer of the decoder or the encoder, or around."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from maskattn.typing import NumPyArray

HEADS, SIZE, WIDTH = 4, 8, 24


def params(weights: dict[str, NumPyArray]) -> dict[str, object]:
    """The weights of PyTorch's model as this port's variables."""
    found: dict[str, object] = {"shared": {"embedding": weights["shared.weight"]}}
    for name, w in weights.items():
        if "embed_tokens" in name or name in ("shared.weight", "lm_head.weight"):
            continue
        name = re.sub(r"\.layer\.\d\.(SelfAttention|EncDecAttention|layer_norm|DenseReluDense)", _part, name)
        *path, last = name.replace("block.", "block_").removesuffix(".weight").split(".")
        here = found
        if last == "relative_attention_bias":
            found[path[0]]["bias"] = w  # type: ignore[index]
            continue
        for key in path:
            here = here.setdefault(key, {})  # type: ignore[assignment]
        here[last] = {"scale": w} if "norm" in last else {"kernel": w.T}
    return {"params": found}


def _part(hit: re.Match[str]) -> str:
    names = {"SelfAttention": "self", "EncDecAttention": "cross", "DenseReluDense": "mlp"}
    return f".{names.get(hit[1], 'norm_' + hit[0].split('.')[2])}"


def buckets(queries: int, keys: int, both_ways: bool, number: int = 8, furthest: int = 16) -> Array:
    away = jnp.arange(keys)[None] - jnp.arange(queries)[:, None]
    found = jnp.zeros_like(away)
    if both_ways:
        number //= 2
        found = jnp.where(away > 0, number, 0)
        away = jnp.abs(away)
    else:
        away = jnp.maximum(-away, 0)
    exact = number // 2
    far = exact + (jnp.log(jnp.maximum(away, 1) / exact) / math.log(furthest / exact) * (number - exact)).astype(int)
    return found + jnp.where(away < exact, away, jnp.minimum(far, number - 1))


class Norm(nn.Module):
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = self.param("scale", nn.initializers.ones, (WIDTH,))
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps) * w


class Attention(nn.Module):
    bad: str = ""

    @nn.compact
    def __call__(self, x: Array, read: Array, bias: Array) -> Array:
        dense = lambda name, size: nn.Dense(size, use_bias=False, name=name)
        split = lambda y: y.reshape(*y.shape[:2], HEADS, SIZE)
        q, k, v = (split(dense(name, HEADS * SIZE)(y)) for name, y in (("q", x), ("k", read), ("v", read)))
        scores = jnp.einsum("blhd,bshd->bhls", q, k)
        if self.bad == "scores scaled":
            scores = scores * SIZE**-0.5
        weights = nn.softmax(scores + bias)
        return dense("o", WIDTH)(jnp.einsum("bhls,bshd->blhd", weights, v).reshape(*x.shape[:2], -1))


class MLP(nn.Module):
    bad: str = ""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = lambda name, size: nn.Dense(size, use_bias=False, name=name)
        gate, up = dense("wi_0", 40)(x), dense("wi_1", 40)(x)
        if self.bad == "gate and up exchanged":
            gate, up = up, gate
        act = {"exact gelu": lambda y: nn.gelu(y, approximate=False), "relu": nn.relu, "silu": nn.silu}.get(
            self.bad, nn.gelu
        )
        return dense("wo", WIDTH)(act(gate) * up)


class Block(nn.Module):
    decoder: bool = False
    bad: str = ""

    @nn.compact
    def __call__(self, x: Array, bias: Array, read: Array | None = None, unseen: Array | None = None) -> Array:
        norm = lambda at: Norm(1e-3 if self.bad == "eps" else 1e-6, name=f"norm_{at}")
        h = norm(0)(x)
        x = x + Attention(self.bad, name="self")(h, h, bias)
        if self.decoder:
            h = norm(1)(x)
            read = h if self.bad == "cross reads the decoder" else read
            none = jnp.zeros_like(unseen) if self.bad == "padding forgotten in cross attention" else unseen
            none = none[..., : read.shape[1]]
            x = x + Attention(name="cross")(x if self.bad == "cross attention of the unnormed" else h, read, none)
        h = norm(2 if self.decoder else 1)(x)
        return x + MLP(self.bad, name="mlp")(h)


class Stack(nn.Module):
    decoder: bool = False
    layers: int = 2
    bad: str = ""
    at: int = 1

    def setup(self) -> None:
        mine = lambda i: self.bad if i == self.at else ""
        self.block = [Block(self.decoder, mine(i)) for i in range(self.layers)]
        self.final_layer_norm = Norm()
        self.table = self.param("bias", nn.initializers.zeros, (8, HEADS))

    def __call__(self, x: Array, mask: Array, read: Array | None = None, unseen: Array | None = None) -> Array:
        length = x.shape[1]
        both = not self.decoder if self.bad != "buckets of the wrong kind" else self.decoder
        which = buckets(length, length, both, furthest=12 if self.bad == "furthest distance" else 16)
        if self.bad == "buckets backwards":
            which = which.T
        bias = self.table[which].transpose(2, 0, 1)[None] + mask
        if self.bad == "relative positions missing":
            bias = mask
        for number, block in enumerate(self.block):
            first = self.bad == "relative positions in the first layer alone" and number
            x = block(x, mask if first else bias, read, unseen)
        return x if self.bad == "final norm missing" else self.final_layer_norm(x)


class T5(nn.Module):
    bad: str = ""
    of: str = "decoder"

    def setup(self) -> None:
        self.shared = nn.Embed(50, WIDTH)
        self.encoder = Stack(bad=self.bad if self.of == "encoder" else "")
        self.decoder = Stack(True, bad=self.bad if self.of == "decoder" else "")

    def __call__(self, ids: Array, padding: Array, labels: Array) -> Array:
        least = -1e9
        unseen = jnp.where(padding != 0, 0.0, least)[:, None, None]
        none = jnp.zeros_like(unseen) if self.bad == "padding forgotten in the encoder" else unseen
        x = self.shared(ids)
        if self.bad == "embedding scaled":
            x = x * WIDTH**0.5
        read = self.encoder(x, none)
        given = labels if self.bad == "not shifted" else jnp.pad(labels, ((0, 0), (1, 0)))[:, :-1]
        if self.bad == "shifted by two":
            given = jnp.pad(labels, ((0, 0), (2, 0)))[:, :-2]
        length = labels.shape[1]
        causal = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, least)
        causal = jnp.zeros_like(causal) if self.bad == "causal missing" else causal
        x = self.decoder(self.shared(given), causal, read, unseen)
        if self.bad != "scale of the output missing":
            x = x * WIDTH**-0.5
        return x @ self.shared.embedding.T
