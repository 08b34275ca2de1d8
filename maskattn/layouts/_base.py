"""What a layout is, and the few reshapes every layout is made of.

A layout says under which names and in which order a framework stores the parameters of one attention layer. It only
permutes: reshape, transpose, split, concatenate. All layouts meet in the canonical form (see ``canonical.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from maskattn.config import AttentionConfig

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Tensors = dict[str, Array]

PROJECTIONS = ("query", "key", "value")


class Layout(ABC):
    """One way of storing an attention layer.

    ``separator`` joins the names of nested modules. A tensor named ``anchors[i]``, or ending in it after a separator,
    shows that a layer is stored there; what precedes it is the layer's prefix. ``outside`` are names found beside a
    layer that are not attention. ``refused`` maps names of attention that has no canonical form to the reason.
    ``stores_heads``: the shapes show the number of heads. ``detectable``: ``detect`` considers this layout.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    separator: ClassVar[str] = "."
    anchors: ClassVar[tuple[str, ...]]
    outside: ClassVar[tuple[str, ...]] = ()
    refused: ClassVar[Mapping[str, str]] = {}
    detectable: ClassVar[bool] = True
    stores_heads: ClassVar[bool] = False

    @abstractmethod
    def shapes(self, config: AttentionConfig) -> dict[str, Shape]:
        """Every tensor of one layer, by its name without prefix, and its shape."""

    @abstractmethod
    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """One layer's tensors (as ``shapes`` lists them) -> canonical tensors, as views or copies."""

    @abstractmethod
    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Canonical tensors of one layer -> this layout's, as views or copies."""

    @abstractmethod
    def infer(self, tensors: Mapping[str, Array], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """The configuration that the shapes of one layer's ``tensors`` admit; ValueError where they admit none.

        Layouts that fold heads into rows need ``num_heads``, and ``num_kv_heads`` where it differs.
        """

    def unsupported(self, config: AttentionConfig) -> list[str]:
        """Every reason this layout cannot hold a layer of ``config``; ``[]`` where it can."""
        return []

    def match(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The layers found among ``names``: ``{prefix: {name without prefix: full name}}``, in order of appearance.

        A layer owns every name under its prefix that no longer prefix claims, ``outside`` names excepted.
        """
        names = list(names)
        layers: dict[str, dict[str, str]] = {}
        for name in names:
            for anchor in self.anchors:
                if name == anchor or name.endswith(self.separator + anchor):
                    layers.setdefault(name[: len(name) - len(anchor)], {})
        for name in names:
            prefix = self._owner(name, layers)
            if prefix is not None and name[len(prefix) :] not in self.outside:
                layers[prefix][name[len(prefix) :]] = name
        return layers

    def _owner(self, name: str, prefixes: Mapping[str, Any]) -> str | None:
        end = len(name)
        while end >= 0:  # from the longest prefix to the empty one
            end = name.rfind(self.separator, 0, end)
            prefix = name[: end + len(self.separator)] if end >= 0 else ""
            if prefix in prefixes:
                return prefix
        return None


def projection_biases(config: AttentionConfig) -> bool:
    """Whether query, key and value have biases to store."""
    return config.project and config.qkv_bias


def linear_shapes(config: AttentionConfig) -> dict[str, Shape]:
    """Shapes of query, key, value and out as [out features, in features] matrices."""
    heads, kv_heads, dim, v_dim = config.num_heads, config.kv_heads, config.qk_head_dim, config.value_head_dim
    return {
        "query": (heads * dim, config.embed_dim),
        "key": (kv_heads * dim, config.key_dim),
        "value": (kv_heads * v_dim, config.value_dim),
        "out": (config.output_dim, heads * v_dim),
    }


def heads_of(role: str, config: AttentionConfig) -> int:
    """How many heads the rows of projection ``role`` are made of."""
    return config.num_heads if role == "query" else config.kv_heads


def kernel_from_linear(weight: Array, heads: int) -> Array:
    """[heads * D, in] -> [in, heads, D]"""
    return weight.reshape(heads, weight.shape[0] // heads, weight.shape[1]).transpose(2, 0, 1)


def linear_from_kernel(kernel: Array) -> Array:
    """[in, heads, D] -> [heads * D, in]"""
    return kernel.reshape(kernel.shape[0], -1).T


def out_from_linear(weight: Array, heads: int) -> Array:
    """[out, heads * Dv] -> [heads, Dv, out]"""
    return weight.T.reshape(heads, weight.shape[1] // heads, weight.shape[0])


def linear_from_out(kernel: Array) -> Array:
    """[heads, Dv, out] -> [out, heads * Dv]"""
    return kernel.reshape(-1, kernel.shape[2]).T


def sections(config: AttentionConfig) -> list[int]:
    """Where the rows of a fused [query; key; value] matrix are split."""
    shapes = linear_shapes(config)
    return [shapes["query"][0], shapes["query"][0] + shapes["key"][0]]


def need(tensors: Mapping[str, Array], name: str, ndim: int) -> Shape:
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
