"""What the parts of a layer learn: the parameters beside its projections, by their canonical names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from maskattn.config import AttentionConfig
from maskattn.layer.norm import Norm
from maskattn.layer.position_bias import ContinuousTable, Disentangled, T5Table, WindowTable

#: how the tables of relative positions begin, as in Swin and BEiT
TABLE_SPREAD = 0.02

#: The heads that an axis of a parameter counts, first of all: (whose, which axis of the canonical form).
Heads: TypeAlias = tuple[Literal["query", "key"], int]

_PER_HEAD: Heads = "query", 0
_COLUMNS: Heads = "query", 1
_KV_COLUMNS: Heads = "key", 1


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer beside its four projections.

    Attributes:
        shape: in the canonical form.
        begins: its number at the start; None: drawn, as the framework draws the matrices of its layers
            (names ending in ".kernel"), or from a normal distribution of standard deviation `TABLE_SPREAD`.
        heads: along which axis it is divided where heads are; None: along none.
    """

    shape: tuple[int, ...]
    begins: float | None = None
    heads: Heads | None = None


def parameters(config: AttentionConfig) -> dict[str, Parameter]:
    """The parameters of a configuration beside its projections, by canonical names (`convert/layouts/canonical.py`)."""
    return dict(_parameters(config))


def _parameters(config: AttentionConfig) -> Iterator[tuple[str, Parameter]]:
    width = config.num_heads * config.head_dim
    if config.qk_norm is not None:
        yield from _norms(config, config.qk_norm)
    if config.extra_keys is not None and config.extra_keys.learned:
        yield "bias_k", Parameter((config.num_kv_heads, config.head_dim), heads=("key", 0))
        yield "bias_v", Parameter((config.num_kv_heads, config.v_head_dim), heads=("key", 0))
    yield from _tables(config)
    if config.cosine is not None:
        yield "logit_scale", Parameter((config.num_heads,), math.log(10.0), _PER_HEAD)
    if config.sinks:
        yield "sinks", Parameter((config.num_heads,), 0.0, _PER_HEAD)
    if config.gate is not None:
        gates = config.num_heads * (config.v_head_dim if config.gate.per == "number" else 1)
        yield from _layer("gate", config.embed_dim, gates, config.gate.bias, _COLUMNS)
    if config.global_tokens is not None:
        kv_width = config.num_kv_heads * config.head_dim, config.num_kv_heads * config.v_head_dim
        yield from _layer("query_global", config.embed_dim, width, config.global_tokens.bias, _COLUMNS)
        yield from _layer("key_global", config.kdim, kv_width[0], config.global_tokens.bias, _KV_COLUMNS)
        yield from _layer("value_global", config.vdim, kv_width[1], config.global_tokens.bias, _KV_COLUMNS)


def _norms(config: AttentionConfig, norm: Norm) -> Iterator[tuple[str, Parameter]]:
    if norm.scale == "none":
        return
    roles: tuple[tuple[Literal["query", "key"], int], ...] = ("query", config.num_heads), ("key", config.num_kv_heads)
    for role, count in roles:
        shape: tuple[int, ...] = (config.head_dim,) if norm.scale == "shared" else (count, config.head_dim)
        heads: Heads | None = None if norm.scale == "shared" else (role, 0)
        yield f"{role}_norm.scale", Parameter(shape, 0.0 if norm.plus_one else 1.0, heads)
        if norm.bias:
            yield f"{role}_norm.bias", Parameter(shape, 0.0, heads)


def _tables(config: AttentionConfig) -> Iterator[tuple[str, Parameter]]:
    part, heads, width = config.position_bias, config.num_heads, config.num_heads * config.head_dim
    if isinstance(part, WindowTable):
        yield "relative_position_bias.table", Parameter((part.rows, heads), heads=_COLUMNS)
    elif isinstance(part, T5Table):
        yield "relative_attention_bias.table", Parameter((part.rows, heads), heads=_COLUMNS)
    elif isinstance(part, ContinuousTable):
        yield from _layer("cpb_mlp.0", 2, part.hidden, bias=True, heads=None)
        yield from _layer("cpb_mlp.2", part.hidden, heads, bias=False, heads=_COLUMNS)
    elif isinstance(part, Disentangled) and not part.shared:
        if part.to_position:
            yield from _layer("pos_key", config.embed_dim, width, bias=True, heads=_COLUMNS)
        if part.from_position:
            yield from _layer("pos_query", config.embed_dim, width, bias=True, heads=_COLUMNS)


def _layer(
    name: str, width_in: int, width_out: int, bias: bool, heads: Heads | None
) -> Iterator[tuple[str, Parameter]]:
    yield f"{name}.kernel", Parameter((width_in, width_out), heads=heads)
    if bias:
        yield f"{name}.bias", Parameter((width_out,), 0.0, None if heads is None else (heads[0], 0))
