"""Attention layers of published models in float64, from canonical tensors: rotary, norms, cosine, one more key, sinks.

Written from the models' papers, to judge weights that were converted; the library's own modules have none of these.
"""

import numpy as np

from maskattn import standards
from maskattn.numerics import oracle


def layer(x, canonical, allowed, *, key=None, bias=None, scale=None, rotary=None, norm=None, cosine=False):
    """x [B, L, E] -> [B, L, out].

    rotary: (cos, sin), each [L, r / 2]: pairs (i, i + r / 2) of the first r of a head are turned. norm: of queries and
    keys. cosine: unit queries and keys, and exp(logit_scale) instead of scale.
    """
    w = {name: array.astype(np.float64) for name, array in canonical.items()}
    x = x.astype(np.float64)
    states = x if key is None else key.astype(np.float64)
    q, k, v = (
        np.einsum("ble,ehd->blhd", given, w[f"{role}.kernel"]) + w.get(f"{role}.bias", 0.0)
        for role, given in (("query", x), ("key", states), ("value", states))
    )
    if norm is not None:
        q, k = (normed(part, w, role, *norm) for role, part in (("query", q), ("key", k)))
    if rotary is not None:
        q, k = turned(q, *rotary), turned(k, *rotary)
    if cosine:
        q, k = (part / np.sqrt((part**2).sum(axis=-1, keepdims=True)) for part in (q, k))
        q, scale = q * np.exp(np.minimum(w["logit_scale"], np.log(100.0)))[:, None], 1.0
    if "bias_k" in w:
        k, v = (
            np.concatenate([part, np.broadcast_to(w[name], (len(part), 1, *w[name].shape))], axis=1)
            for part, name in ((k, "bias_k"), (v, "bias_v"))
        )
        allowed = np.concatenate([allowed, np.ones((*allowed.shape[:3], 1), bool)], axis=3)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads = oracle.attention(q, k, v, allowed, bias=bias, scale=scale, sinks=w.get("sinks")).output
    if "norm.scale" in w:
        joined = heads.reshape(*heads.shape[:2], -1)
        heads = (standard(joined, 1e-5) * w["norm.scale"] + w["norm.bias"]).reshape(heads.shape)
    return np.einsum("blhd,hdo->blo", heads, w["out.kernel"]) + w.get("out.bias", 0.0)


def normed(x, w, role, kind, eps):
    if kind == "rms":
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * w[f"{role}_norm.scale"]
    return standard(x, eps) * w[f"{role}_norm.scale"] + w.get(f"{role}_norm.bias", 0.0)


def standard(x, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)


def turned(x, cos, sin):
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def angles(length, size):
    """(cos, sin), each [length, size / 2]."""
    angle = np.arange(length)[:, None] * 1000.0 ** (-np.arange(0, size, 2) / size)
    return np.cos(angle), np.sin(angle)


def share(output, right, x, canonical, allowed, *, key=None, bias=None, scale=None):
    """The largest error over the limit for another library's module; what is beside the projections leaves its bounds
    as they are, or widens them."""
    plain = {
        name: a for name, a in canonical.items() if name.split(".")[0] in ("query", "key", "value", "out", "sinks")
    }
    given = {"key": key, "value_input": key, "bias": bias, "scale": scale}
    limit = standards.module_limit(x, plain, allowed, "float32", **given)
    return float((np.abs(output - right) / (standards.value("module.peer") * limit)).max())
