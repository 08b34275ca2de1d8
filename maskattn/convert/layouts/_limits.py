"""What modules cannot express, one limit per function; each gives its reasons, ``[]`` where there are none."""

from __future__ import annotations

import math

from maskattn.config import AttentionConfig


def projects(config: AttentionConfig) -> list[str]:
    """The module always projects."""
    return [] if config.project else ["project is False, but the module always projects"]


def one_head_count(config: AttentionConfig) -> list[str]:
    """As many key/value heads as query heads."""
    if config.num_kv_heads == config.num_heads:
        return []
    return [f"num_kv_heads is {config.num_kv_heads}, but the module has num_heads={config.num_heads} of each"]


def heads_make_width(config: AttentionConfig) -> list[str]:
    """num_heads * head_dim is embed_dim."""
    if config.head_dim * config.num_heads == config.embed_dim:
        return []
    return [
        f"num_heads * head_dim is {config.num_heads} * {config.head_dim}, "
        f"but the module has embed_dim={config.embed_dim}"
    ]


def one_head_size(config: AttentionConfig) -> list[str]:
    """Query, key and value heads of one size."""
    if config.v_head_dim == config.head_dim:
        return []
    return [f"v_head_dim is {config.v_head_dim}, but the module has head_dim={config.head_dim} for both"]


def same_output(config: AttentionConfig) -> list[str]:
    """The output is as wide as the input."""
    if config.out_dim == config.embed_dim:
        return []
    return [f"out_dim is {config.out_dim}, but the module gives embed_dim={config.embed_dim}"]


def one_width(config: AttentionConfig) -> list[str]:
    """Query, key and value are projected from inputs of one width."""
    return [
        f"{name} is {width}, but the module has embed_dim={config.embed_dim}"
        for name, width in (("kdim", config.kdim), ("vdim", config.vdim))
        if width != config.embed_dim
    ]


def plain_scale(config: AttentionConfig) -> list[str]:
    """1 / sqrt(head_dim)."""
    plain = 1.0 / math.sqrt(config.head_dim)
    if config.scale == plain:
        return []
    return [f"scale is {config.scale}, but the module always takes 1 / sqrt(head_dim) = {plain}"]


def no_softcap(config: AttentionConfig) -> list[str]:
    """Logits as they are."""
    return [] if config.softcap is None else [f"softcap is {config.softcap}, but the module has none"]


def all_biases(config: AttentionConfig) -> list[str]:
    """Every projection has a bias."""
    return [
        f"{name} is False, but the module always has biases"
        for name in ("qkv_bias", "out_bias")
        if not getattr(config, name)
    ]


def no_biases(config: AttentionConfig) -> list[str]:
    """No projection has a bias."""
    return [
        f"{name} is True, but the module has no biases" for name in ("qkv_bias", "out_bias") if getattr(config, name)
    ]


def output_bias(config: AttentionConfig) -> list[str]:
    """The output projection always has a bias."""
    return [] if config.out_bias else ["out_bias is False, but the module always has one"]


def one_bias_flag(config: AttentionConfig) -> list[str]:
    """One flag sets every bias."""
    if config.qkv_bias == config.out_bias:
        return []
    return [f"qkv_bias is {config.qkv_bias} and out_bias {config.out_bias}, but one flag sets both"]


PLAIN = (projects, one_head_count, heads_make_width, one_head_size, same_output, plain_scale, no_softcap)
"""Plain multi-head attention, with nothing to set but its width, its heads and the widths of key and value."""

OWN_SCALE = (projects, one_head_count, one_head_size, same_output, one_width, no_softcap)
"""Plain self-attention, with heads of any size and whatever scale."""

GROUPED = (projects, one_head_size, same_output, one_width)
"""Self-attention of a width of its own, with key/value heads in any number."""
