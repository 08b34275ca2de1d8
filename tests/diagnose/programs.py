"""A small language model of PyTorch's, and ports of it to JAX, plain and in modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

WIDTH, HEADS, TOKENS = 16, 2, 32


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x, allowed):
        y = self.norm(x)
        q, k, v = (of(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for of in (self.query, self.key, self.value))
        scores = (q @ k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5
        p = scores.masked_fill(~allowed, -1e30).softmax(-1)
        x = x + self.out((p @ v).transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, layers=1):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.final = nn.LayerNorm(WIDTH)

    def forward(self, tokens, attention_mask=None):
        length = tokens.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None, None].bool()
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, allowed)
        return self.final(x) @ self.embed.weight.T


@functools.cache
def model():
    torch.manual_seed(0)
    made = Model().eval()
    with torch.no_grad():
        for one in made.parameters():
            one.normal_(0, 0.5)
    return made


def tokens(batch=2, length=10):
    return np.random.default_rng(0).integers(0, TOKENS, (batch, length))


def params(dtype=jnp.float32):
    """The model's, as a port has them: kernels transposed, keys and values in one."""
    state = {name: one.numpy() for name, one in model().state_dict().items()}
    layers = []
    for at in range(1):
        of = {name.removeprefix(f"layers.{at}."): one for name, one in state.items() if f"layers.{at}." in name}
        held = {name: (of[f"{name}.weight"].T, of[f"{name}.bias"]) for name in ("query", "out", "up", "down")}
        held |= {name: (of[f"{name}.weight"], of[f"{name}.bias"]) for name in ("norm", "norm2")}
        both = [of[f"{name}.{part}"].T for part in ("weight", "bias") for name in ("key", "value")]
        held["kv"] = (np.concatenate(both[:2], 1), np.concatenate(both[2:]))
        layers.append(held)
    found = {"embed": state["embed.weight"], "layers": layers, "final": (state["final.weight"], state["final.bias"])}
    return jax.tree.map(lambda one: jnp.asarray(one, dtype), found)


def norm(x, wb, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps) * wb[0] + wb[1]


def linear(x, wb):
    return x @ wb[0] + wb[1]


def layer(p, x, allowed, scale=(WIDTH // HEADS) ** -0.5, up=linear):
    b, n, _ = x.shape
    y = norm(x, p["norm"])
    q = linear(y, p["query"]).reshape(b, n, HEADS, -1)
    k, v = (one.reshape(b, n, HEADS, -1) for one in jnp.split(linear(y, p["kv"]), 2, -1))
    s = jnp.where(allowed, jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale, -1e30)
    o = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s, -1), v).reshape(b, n, -1)
    x = x + linear(o, p["out"])
    return x + linear(jax.nn.gelu(up(norm(x, p["norm2"]), p["up"]), approximate=False), p["down"])


def port(p, tokens, attention_mask=None, faults=(), **changed):
    n = tokens.shape[1]
    allowed = jnp.tril(jnp.ones((n, n), bool))
    if attention_mask is not None and "no padding mask" not in faults:
        allowed = allowed & attention_mask[:, None, None].astype(bool)
    x = p["embed"][tokens]
    for at, each in enumerate(p["layers"]):
        x = layer(each, x, allowed, **(changed if at == 0 else {}))
    return norm(x, p["final"]) @ p["embed"].T
