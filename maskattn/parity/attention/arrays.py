"""The arrays of a case. Same case, same bytes, with any version of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskattn import biases
from maskattn._pairs import grid
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.draws import Draws
from maskattn.typing import NumPyArray as Array


def inputs(case: Case) -> dict[str, Array]:
    """The arrays of a case: query, key, value, mask (bool [B, H, L, S], True = may attend), and where the case has them
    bias (float, as added to the logits), sinks [H] and keep (bool, the shape of mask, True = not dropped)."""
    s, draws = case.shape, Draws(case.seed * 2 + 1)
    if case.config is not None:
        c = case.config
        widths = (c.embed_dim, c.kdim, c.vdim)
        sizes: list[tuple[int, ...]] = [
            (s.batch, s.q_len, widths[0]),
            (s.batch, s.kv_len, widths[1]),
            (s.batch, s.kv_len, widths[2]),
        ]
    else:
        sizes = [
            (s.batch, s.q_len, s.heads, s.head_dim),
            (s.batch, s.kv_len, s.kv_heads, s.head_dim),
            (s.batch, s.kv_len, s.kv_heads, s.v_head_dim),
        ]
    dtype, allowed = case.numpy_dtype, case.allowed
    query = (case.spread * draws.normal(sizes[0])).astype(dtype)
    key, value = (draws.normal(size).astype(dtype) for size in sizes[1:])
    if case.config is not None and s.q_len == s.kv_len and len({size for size in sizes}) == 1:
        key = value = query  # self-attention
    if case.plant is not None:
        key, value = plant(case, key, case.plant), plant(case, value, case.plant)
    made = {"query": query, "key": key, "value": value, "mask": allowed}
    if isinstance(case.bias, str):
        bias = draws.normal(s.scores if case.bias == "dense" else (1, s.heads, s.q_len, s.kv_len))
        if case.bias == "dense-inf":
            bias = np.where(draws.booleans(bias.shape, 0.3), -np.inf, bias)
        made["bias"] = bias.astype(dtype)
    elif case.bias is not None:
        made["bias"] = np.broadcast_to(bias_values(case.bias, s), s.scores).astype(case.lse_dtype)
    if case.table is not None:
        made["table"] = case.table
    if case.sinks:
        made["sinks"] = draws.normal((s.heads,)).astype(dtype)
    if case.config is None and case.dropped:
        made["keep"] = case.dropped["keep"]
    return made


def bias_values(bias: Any, shape: Shape) -> Array:
    """A `Bias` object's values, broadcastable to [B, H, L, S]: size 1 on the axes that it does not read."""
    return np.asarray(bias.values(*grid(bias.depends, shape.scores, np.arange)))


def bias_rows(bias: biases.TableBias, shape: Shape) -> Array:
    """The row of its table for each of `bias_values`, int64 [B or 1, 1, L, S]."""
    b, _, q, k = grid(bias.depends, shape.scores, np.arange)
    rows = np.asarray(bias.rows(b, q, k))
    return np.broadcast_to(rows, (len(b), 1, shape.q_len, shape.kv_len)).astype(np.int64)


def cotangent(case: Case) -> dict[str, Array]:
    """What is multiplied with the results before they are summed and differentiated: output [B, L, H, Dv] (of a module
    [B, L, out]) in the case's dtype and lse [B, L, H]."""
    s, draws = case.shape, Draws(case.seed * 2 + 2)
    if case.config is not None:
        c = case.config
        return {"output": draws.normal((s.batch, s.q_len, c.out_dim or c.embed_dim)).astype(case.numpy_dtype)}
    output = draws.normal((s.batch, s.q_len, s.heads, s.v_head_dim)).astype(case.numpy_dtype)
    return {"output": output, "lse": draws.normal((s.batch, s.q_len, s.heads)).astype(case.lse_dtype)}


def unreached(case: Case) -> Any:
    """bool [B, S, K]: keys that no query may reach (through any head that reads them)."""
    s = case.shape
    reached: Any = case.allowed.any(axis=2).reshape(s.batch, s.kv_heads, s.heads // s.kv_heads, s.kv_len).any(axis=2)
    return ~reached.transpose(0, 2, 1)


def plant(case: Case, array: Array, number: float) -> Array:
    """`array` ([B, S, K, D], or a module's [B, S, E]) with `number` in every key that no query may reach."""
    dead = unreached(case)[..., None] if array.ndim == 4 else unreached(case).all(axis=2)[..., None]
    return np.where(dead, np.asarray(number, dtype=array.dtype), array)


def weights(case: Case) -> dict[str, Array]:
    """Canonical weights of a case: `query.kernel` [E, H, D], ..., `out.bias` [out] (kernels' variance: 1/E)."""
    c, s, draws = case.config, case.shape, Draws(case.seed * 2 + 3)
    assert c is not None
    shapes = {
        "query": (c.embed_dim, s.heads, s.head_dim),
        "key": (c.kdim, s.kv_heads, s.head_dim),
        "value": (c.vdim, s.kv_heads, s.v_head_dim),
    }
    made = {}
    for name, shape in shapes.items():
        made[f"{name}.kernel"] = draws.normal(shape) / np.sqrt(shape[0])
        if c.qkv_bias:
            made[f"{name}.bias"] = draws.normal(shape[1:])
    made["out.kernel"] = draws.normal((s.heads, s.v_head_dim, c.out_dim)) / np.sqrt(s.heads * s.v_head_dim)
    if c.out_bias:
        made["out.bias"] = draws.normal((c.out_dim,))
    if c.sinks:
        made["sinks"] = draws.normal((s.heads,))
    return {name: array.astype(case.numpy_dtype) for name, array in made.items()}
