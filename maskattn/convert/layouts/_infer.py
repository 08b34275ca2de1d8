"""The configuration that the shapes of one layer's tensors admit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._stored import PROJECTIONS, Shape, Stored


class Kernel(NamedTuple):
    """A stored matrix: the features it makes, heads folded into them, by the width of what it is applied to."""

    name: str
    rows: int
    width: int


def infer_rows(
    name: str,
    stored: Sequence[Stored],
    tensors: Mapping[str, object],
    num_heads: int | None,
    num_kv_heads: int | None,
    *,
    one_head_size: bool,
    scale: float | None,
    sinks: bool,
) -> AttentionConfig:
    """For a layout that folds heads into rows. ``stored``: all it may hold; those present are used. ``one_head_size``,
    ``scale`` and ``sinks`` are what the layout knows of its layers.

    ``num_kv_heads``, where not given, follows from the shapes if the layout has one head size for query, key and value
    or stores the key apart, and is ``num_heads`` otherwise. ValueError where the shapes admit no configuration.
    """
    if num_heads is None:
        raise ValueError(f"num_heads is needed (--heads, or a config.json): {name} does not store it")
    kernels = _kernels(stored, tensors)
    out = kernels["out",]
    v_dim = divide(out.width, num_heads, f"columns of {out.name} over num_heads")
    dim, kv_heads = v_dim, num_kv_heads
    if ("query",) in kernels:
        query = kernels["query",]
        dim = divide(query.rows, num_heads, f"rows of {query.name} over num_heads")
    elif PROJECTIONS in kernels and not one_head_size:
        fused, kv_heads = kernels[PROJECTIONS], num_heads if kv_heads is None else kv_heads
        dim = divide(fused.rows - kv_heads * v_dim, num_heads + kv_heads, f"rows of {fused.name} over its heads")
    if kv_heads is None:
        kv_heads = _kv_heads(kernels, num_heads, dim, v_dim)
    widths = {role: kernel.width for roles, kernel in kernels.items() for role in roles}
    biased = {role for entry in stored if entry.part == "bias" and entry.name in tensors for role in entry.roles}
    return AttentionConfig(
        widths["query"],
        num_heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        v_head_dim=v_dim,
        kdim=widths["key"],
        vdim=widths["value"],
        out_dim=out.rows,
        qkv_bias=bool(biased - {"out"}),
        out_bias="out" in biased,
        scale=scale,
        sinks=sinks,
    )


def _kernels(stored: Sequence[Stored], tensors: Mapping[str, object]) -> dict[tuple[str, ...], Kernel]:
    """The matrices that are there, by the projections that each holds; together they must hold all four."""
    kernels: dict[tuple[str, ...], Kernel] = {}
    for entry in stored:
        if entry.part == "kernel" and entry.name in tensors:
            rows, width = need(tensors, entry.name, 2)[:: -1 if entry.form == "conv1d" else 1]
            kernels[entry.roles] = Kernel(entry.name, rows, width)
    held = {role for roles in kernels for role in roles}
    for entry in stored:
        if entry.part == "kernel" and not held.issuperset(entry.roles):
            raise ValueError(f"{entry.name} is missing")
    return kernels


def _kv_heads(kernels: Mapping[tuple[str, ...], Kernel], num_heads: int, dim: int, v_dim: int) -> int | None:
    """Key/value heads, by the rows of the key, of key and value, or of all three; None where none of these is there."""
    if ("key",) in kernels:
        key = kernels["key",]
        return divide(key.rows, dim, f"rows of {key.name} over the head size {dim}")
    if ("key", "value") in kernels:
        pair = kernels["key", "value"]
        return divide(pair.rows, dim + v_dim, f"rows of {pair.name} over key and value of a head")
    if PROJECTIONS in kernels:
        fused, rest = kernels[PROJECTIONS], kernels[PROJECTIONS].rows - num_heads * dim
        return divide(rest, dim + v_dim, f"rows of {fused.name} beyond the query over key and value of a head")
    return None


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
