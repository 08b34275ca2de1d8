"""Hugging Face Llama, Mistral, Qwen2, Qwen3 and their many relatives: ``q_proj`` [H·D, E], ``k_proj`` and ``v_proj``
[K·D, E], ``o_proj`` [E, H·D]; rotary pairs are half-split.

Qwen2 has biases on query, key and value only; Qwen3 ``q_norm`` and ``k_norm`` [D]; gpt-oss ``sinks`` [H]. In memory
transformers 5 holds ViT and DINOv2 under the same names. So do Cohere and GLM, but with interleaved rotary pairs: they
are not this layout.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout
from maskattn.convert.layouts._buffers import inv_freq
from maskattn.convert.layouts._limits import GROUPED
from maskattn.convert.layouts._stored import linear


class HFLlama(Layout):
    """Separate projections, key/value heads in any number."""

    name = "hf-llama"
    aliases = ("hf-mistral", "hf-qwen2", "hf-qwen3", "hf-vit-memory", "hf-dinov2-memory")
    anchors = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    projections = (
        *linear("q_proj", "query"),
        *linear("k_proj", "key"),
        *linear("v_proj", "value"),
        *linear("o_proj", "out"),
    )
    extras = (
        Extra("query_norm.scale", "q_norm.weight", ("D",)),
        Extra("key_norm.scale", "k_norm.weight", ("D",)),
        Extra("sinks", "sinks", ("H",)),
    )
    buffers = (inv_freq("rotary_emb.inv_freq"),)
    refused = {
        "relative_position_bias.relative_position_bias_table": "a layer with a table is of layout hf-swin-memory",
    }
    limits = GROUPED
