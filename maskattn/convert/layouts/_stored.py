"""One stored tensor of the projections: which of them it holds, and in which order its numbers lie.

Rows are output features. Whatever the form, the rows of query, key and value are (heads, head_dim) unless fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.typing import NumPyArray as Array

Shape = tuple[int, ...]
Tensors = dict[str, Array]

PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Stored:
    """A tensor that holds the kernels, or the biases, of one projection or of several fused.

    Args:
        name: of the tensor, without the layer's prefix.
        roles: "query", "key", "value" in the order stored, or "out" alone.
        part: "kernel" or "bias".
        form: of a kernel: "linear" [rows, in] · "conv1d" [in, rows] · "kernel" [in, heads, head_dim], for "out"
            [H, Dv, out]. A bias is [rows]; in the form "kernel" [heads, head_dim], for "out" [out].
        order: of fused rows: "blocks", one role after the other · "groups", (K, G + 2, D): the G query heads of a
            key/value head, then its key, then its value. For K = H that is (H, 3, D).
    """

    name: str
    roles: tuple[str, ...]
    part: str = "kernel"
    form: str = "linear"
    order: str = "blocks"

    @property
    def canonical(self) -> tuple[str, ...]:
        """The canonical tensors held here."""
        return tuple(f"{role}.{self.part}" for role in self.roles)

    def wanted(self, config: AttentionConfig) -> bool:
        """Whether a layer of ``config`` has what is held here."""
        if self.part == "kernel":
            return config.project
        return config.project and (config.out_bias if self.roles == ("out",) else config.qkv_bias)

    def shape(self, config: AttentionConfig) -> Shape:
        """The tensor's shape."""
        if self.roles == ("out",):
            rows: Shape = (config.out_dim,)
            inside: Shape = (config.num_heads, config.v_head_dim)
            if self.part == "bias":
                return rows
            if self.form == "kernel":
                return inside + rows
            columns = (inside[0] * inside[1],)
            return columns + rows if self.form == "conv1d" else rows + columns
        if self.form == "kernel":
            heads = heads_of(self.roles[0], config)
            return ((width_of(self.roles[0], config),) if self.part == "kernel" else ()) + heads
        total = (sum(n * d for n, d in (heads_of(role, config) for role in self.roles)),)
        if self.part == "bias":
            return total
        width = (width_of(self.roles[0], config),)
        return width + total if self.form == "conv1d" else total + width

    def split(self, array: Array, config: AttentionConfig) -> Tensors:
        """The tensor -> canonical tensors; views wherever strides allow."""
        if self.form == "kernel":
            return {self.canonical[0]: array}
        if self.part == "kernel" and self.form == "conv1d":
            array = array.T
        if self.roles == ("out",):
            if self.part == "kernel":
                array = array.T.reshape(config.num_heads, config.v_head_dim, -1)
            return {self.canonical[0]: array}
        rest = array.shape[1:]
        if self.order == "groups":
            groups = config.num_heads // config.num_kv_heads
            grouped = array.reshape(config.num_kv_heads, groups + 2, config.head_dim, *rest)
            query = grouped[:, :groups].reshape(config.num_heads, config.head_dim, *rest)
            rows = [query, grouped[:, groups], grouped[:, groups + 1]]
        else:
            heads = [heads_of(role, config) for role in self.roles]
            ends = np.cumsum([n * d for n, d in heads])[:-1]
            rows = [part.reshape(*nd, *rest) for part, nd in zip(np.split(array, ends), heads, strict=True)]
        return {name: np.moveaxis(x, -1, 0) if rest else x for name, x in zip(self.canonical, rows, strict=True)}

    def join(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Array:
        """Canonical tensors -> the tensor; a view where one role is held and strides allow."""
        parts = [tensors[name] for name in self.canonical]
        if self.form == "kernel":
            return parts[0]
        if self.roles == ("out",):
            if self.part == "bias":
                return parts[0]
            matrix = parts[0].reshape(-1, parts[0].shape[-1])
            return matrix if self.form == "conv1d" else matrix.T
        rows = [np.moveaxis(x, 0, -1) if self.part == "kernel" else x for x in parts]  # [heads, head_dim, in]
        if self.order == "groups":
            groups = config.num_heads // config.num_kv_heads
            tail = rows[0].shape[1:]
            query = rows[0].reshape(config.num_kv_heads, groups, *tail)
            array = np.concatenate([query, rows[1][:, None], rows[2][:, None]], axis=1).reshape(-1, *tail[1:])
        else:
            flat = [x.reshape(-1, *x.shape[2:]) for x in rows]
            array = flat[0] if len(flat) == 1 else np.concatenate(flat)
        return array.T if self.part == "kernel" and self.form == "conv1d" else array


def linear(module: str, *roles: str, form: str = "linear", order: str = "blocks") -> tuple[Stored, Stored]:
    """``module.weight`` and ``module.bias`` of PyTorch's linear layer (or of Conv1D)."""
    return (
        Stored(f"{module}.weight", roles, "kernel", form, order),
        Stored(f"{module}.bias", roles, "bias", form, order),
    )


def separate(query: str, key: str, value: str, out: str) -> tuple[Stored, ...]:
    """A weight [rows, in] for each projection, by these names, and no biases."""
    return Stored(query, ("query",)), Stored(key, ("key",)), Stored(value, ("value",)), Stored(out, ("out",))


def heads_of(role: str, config: AttentionConfig) -> Shape:
    """(heads, head size) of query, key or value."""
    heads = config.num_heads if role == "query" else config.num_kv_heads
    return heads, config.v_head_dim if role == "value" else config.head_dim


def width_of(role: str, config: AttentionConfig) -> int:
    """The width of the input that query, key or value is projected from."""
    return {"query": config.embed_dim, "key": config.kdim, "value": config.vdim}[role]


def half_split(array: Array) -> Array:
    """Rotary pairs along the last axis (head_dim): interleaved (0, 1), (2, 3), ... -> half-split (0, D/2), ..."""
    return array.reshape(*array.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(array.shape)


def interleave(array: Array) -> Array:
    """Rotary pairs along the last axis (head_dim): half-split -> interleaved; the inverse of ``half_split``."""
    return array.reshape(*array.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(array.shape)
