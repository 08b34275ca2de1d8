"""Haliax linear layers with named axes, as Levanter's attention has them: query heads as (K, G, D), G = H // K.

===================  ===========================  ============================
tensor               ``haliax``                   ``levanter``
===================  ===========================  ============================
``q_proj.weight``    [E, K, G, D]                 [K, G, D, E]
``k_proj.weight``    [kdim, K, D]                 [K, D, kdim]
``v_proj.weight``    [vdim, K, Dv]                [K, Dv, vdim]
``o_proj.weight``    [H, Dv, out]                 [out, H, Dv]
``q_proj.bias``      [K, G, D]                    the same
===================  ===========================  ============================

``haliax.nn.Linear`` puts input axes first unless told ``out_first=True``, which Levanter tells it
(https://github.com/stanford-crfm/levanter, models/llama.py). Names are paths of attributes, rotary pairs half-split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import PROJECTIONS, Array, Extra, Layout, Shape, Stored, Tensors
from maskattn.convert.layouts._infer import divide, need
from maskattn.convert.layouts._limits import projects
from maskattn.convert.layouts._stored import heads_of, width_of

_MODULES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}


@dataclass(frozen=True)
class NamedAxes(Stored):
    """A tensor with an axis for each named one; ``out_first``: the axes of the output come before the input's."""

    out_first: bool = False

    def shape(self, config: AttentionConfig) -> Shape:
        """The tensor's shape."""
        (role,) = self.roles
        if role == "out":
            inside, rows = (config.num_heads, config.v_head_dim), (config.out_dim,)
            if self.part == "bias":
                return rows
            return rows + inside if self.out_first else inside + rows
        heads: Shape = heads_of(role, config)
        if role == "query":
            heads = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
        width = () if self.part == "bias" else (width_of(role, config),)
        return heads + width if self.out_first else width + heads

    def split(self, array: Array, config: AttentionConfig) -> Tensors:
        """The tensor -> a canonical tensor, a view."""
        (role,) = self.roles
        if self.part == "kernel" and self.out_first:
            array = np.moveaxis(array, 0, -1) if role == "out" else np.moveaxis(array, -1, 0)
        if role == "query":
            array = array.reshape(*array.shape[:-3], config.num_heads, config.head_dim)
        return {self.canonical[0]: array}

    def join(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Array:
        """A canonical tensor -> the tensor, a view."""
        (role,) = self.roles
        array = tensors[self.canonical[0]]
        if role == "query":
            array = array.reshape(*array.shape[:-2], config.num_kv_heads, -1, config.head_dim)
        if self.part == "kernel" and self.out_first:
            array = np.moveaxis(array, -1, 0) if role == "out" else np.moveaxis(array, 0, -1)
        return array


def named(out_first: bool) -> tuple[Stored, ...]:
    """Weights and biases of the four projections."""
    return tuple(
        NamedAxes(f"{module}.{'weight' if part == 'kernel' else 'bias'}", (role,), part, out_first=out_first)
        for role, module in _MODULES.items()
        for part in ("kernel", "bias")
    )


class Haliax(Layout):
    """Input axes first, the default of ``haliax.nn.Linear``."""

    name = "haliax"
    anchors = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    projections = named(out_first=False)
    extras = (
        Extra("query_norm.scale", "q_norm.weight", ("D",)),
        Extra("query_norm.bias", "q_norm.bias", ("D",)),
        Extra("key_norm.scale", "k_norm.weight", ("D",)),
        Extra("key_norm.bias", "k_norm.bias", ("D",)),
    )
    limits = (projects,)
    stores_heads = True
    out_first: ClassVar[bool] = False

    def infer(self, tensors: Mapping[str, object], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """Every size is in the shapes; ``num_heads`` and ``num_kv_heads``, where given, must agree with them."""
        shapes = {
            role: need(tensors, f"{module}.weight", 4 if role == "query" else 3) for role, module in _MODULES.items()
        }
        if self.out_first:
            shapes = {
                role: shape[1:] + shape[:1] if role == "out" else shape[-1:] + shape[:-1]
                for role, shape in shapes.items()
            }
        embed_dim, kv_heads, groups, dim = shapes["query"]
        heads, v_dim, out_dim = shapes["out"]
        divide(heads, kv_heads, "heads of o_proj.weight over those of q_proj.weight")
        for what, given, stored in (
            ("num_heads", num_heads, kv_heads * groups),
            ("num_kv_heads", num_kv_heads, kv_heads),
        ):
            if given is not None and given != stored:
                raise ValueError(f"{what} is {given}, but the weights have {stored}")
        return AttentionConfig(
            embed_dim,
            kv_heads * groups,
            num_kv_heads=kv_heads,
            head_dim=dim,
            v_head_dim=v_dim,
            kdim=shapes["key"][0],
            vdim=shapes["value"][0],
            out_dim=out_dim,
            qkv_bias=any(f"{_MODULES[role]}.bias" in tensors for role in PROJECTIONS),
            out_bias="o_proj.bias" in tensors,
        )


class Levanter(Haliax):
    """Output axes first, as Levanter's Llama, Mistral, Qwen and Gemma."""

    name = "levanter"
    projections = named(out_first=True)
    out_first = True
