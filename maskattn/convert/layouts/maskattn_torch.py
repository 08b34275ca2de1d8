"""``maskattn_torch.MultiHeadAttention``, the seed module, and timm's vision transformers.

Where query, key and value have one width: ``qkv.weight`` [H·D + K·D + K·Dv, E] in blocks query, key, value, each head-
major, and ``qkv.bias``. Otherwise ``q_proj``, ``k_proj`` and ``v_proj``. The output is ``proj.weight`` [out, H·Dv],
``proj.bias``. timm (ViT, DeiT, MAE, and DINOv2's original) may add ``q_norm`` and ``k_norm`` [D], and ``norm`` [H·Dv]
before the output projection; ours what its parts learn.
"""

from __future__ import annotations

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import Extra, Layout, Stored
from maskattn.convert.layouts._extras import own
from maskattn.convert.layouts._stored import linear


class MaskattnTorch(Layout):
    """Fused ``qkv`` and ``proj``; ``q_proj``, ``k_proj``, ``v_proj`` where the widths differ."""

    name = "maskattn-torch"
    aliases = ("timm", "seed")
    anchors = ("qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
    projections = (
        *linear("qkv", "query", "key", "value"),
        *linear("q_proj", "query"),
        *linear("k_proj", "key"),
        *linear("v_proj", "value"),
        *linear("proj", "out"),
    )
    extras = (
        *(
            Extra(f"{role}_norm.{canonical}", f"{role[0]}_norm.{name}", axes)
            for role, heads in (("query", "H"), ("key", "K"))
            for canonical, name in (("scale", "weight"), ("bias", "bias"))
            for axes in (("D",), (heads, "D"))
        ),
        Extra("norm.scale", "norm.weight", ("H*Dv",)),
        Extra("norm.bias", "norm.bias", ("H*Dv",)),
        *own(".", "weight"),
    )
    refused = {"relative_position_bias_table": "a layer with a table is of layout swin"}
    one_head_size = False

    def stored(self, config: AttentionConfig) -> tuple[Stored, ...]:
        """The fused tensors or the separate ones, then the output's."""
        return tuple(entry for entry in super().stored(config) if entry.roles == ("out",) or one_matrix(config, entry))


def one_matrix(config: AttentionConfig, entry: Stored) -> bool:
    """Whether ``entry`` is fused exactly where ``config`` allows query, key and value to be one matrix."""
    return (len(entry.roles) > 1) == (config.kdim == config.embed_dim == config.vdim)
