"""The configuration that the shapes of one layer's tensors admit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._stored import Shape, Stored


def infer_rows(
    name: str,
    stored: Sequence[Stored],
    tensors: Mapping[str, Any],
    num_heads: int | None,
    num_kv_heads: int | None,
    *,
    one_head_size: bool,
    scale: float | None,
) -> AttentionConfig:
    """For a layout that folds heads into rows. ``stored``: all it may hold; those present are used.

    ``num_kv_heads``, where not given, follows from the shapes if the layout has one head size for query, key and value
    or stores the key apart, and is ``num_heads`` otherwise. ValueError where the shapes admit no configuration.
    """
    if num_heads is None:
        raise ValueError(f"num_heads is needed: {name} does not store it")
    found: dict[tuple[str, ...], tuple[str, int, int]] = {}
    for entry in stored:
        if entry.part == "kernel" and entry.name in tensors:
            rows, width = need(tensors, entry.name, 2)
            found[entry.roles] = (entry.name, width, rows) if entry.form == "conv1d" else (entry.name, rows, width)
    held = {role for roles in found for role in roles}
    for entry in stored:
        if entry.part == "kernel" and not held.issuperset(entry.roles):
            raise ValueError(f"{entry.name} is missing")
    out_name, out_dim, columns = found[("out",)]
    v_dim = divide(columns, num_heads, f"columns of {out_name} over num_heads")
    widths = {role: width for roles, (_, _, width) in found.items() for role in roles}
    fused = found.get(("query", "key", "value"))
    dim, kv_heads = v_dim, num_kv_heads
    if ("query",) in found:
        dim = divide(found["query",][1], num_heads, f"rows of {found['query',][0]} over num_heads")
    elif fused and not one_head_size:
        kv_heads = num_heads if kv_heads is None else kv_heads
        dim = divide(fused[1] - kv_heads * v_dim, num_heads + kv_heads, f"rows of {fused[0]} over its heads")
    if kv_heads is None:
        if ("key",) in found:
            kv_heads = divide(found["key",][1], dim, f"rows of {found['key',][0]} over the head size {dim}")
        elif ("key", "value") in found:
            pair = found["key", "value"]
            kv_heads = divide(pair[1], dim + v_dim, f"rows of {pair[0]} over key and value of a head")
        elif fused:
            rest = fused[1] - num_heads * dim
            kv_heads = divide(rest, dim + v_dim, f"rows of {fused[0]} beyond the query over key and value of a head")
    biased = {role for s in stored if s.part == "bias" and s.name in tensors for role in s.roles}
    return AttentionConfig(
        widths["query"],
        num_heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        v_head_dim=v_dim,
        kdim=widths["key"],
        vdim=widths["value"],
        out_dim=out_dim,
        qkv_bias=bool(biased - {"out"}),
        out_bias="out" in biased,
        scale=scale,
    )


def need(tensors: Mapping[str, Any], name: str, ndim: int) -> Shape:
    """The shape of a tensor that ``infer`` reads; ValueError where it is missing or of another rank."""
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim:
        raise ValueError(f"{name} has shape {list(shape)}, expected {ndim} axes")
    return shape


def divide(total: int, parts: int, what: str) -> int:
    """``total / parts``; ValueError where that is not a whole number above 0."""
    if parts <= 0 or total <= 0 or total % parts:
        raise ValueError(f"{what}: {total} is not a multiple of {parts}")
    return total // parts
