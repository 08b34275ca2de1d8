"""Hugging Face ViT and DINOv2 as files hold them: ``attention.{query,key,value}`` [E, E] and ``output.dense``.

The prefix of a layer is ``encoder.layer.0.attention.``. In memory transformers 5 calls the same matrices ``q_proj``,
``k_proj``, ``v_proj`` and ``o_proj``: that is layout ``hf-llama``.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import PLAIN, one_width, output_bias
from maskattn.convert.layouts._stored import linear


class HFViT(Layout):
    """Four square linear layers; biases of query, key and value are a choice."""

    name = "hf-vit"
    aliases = ("hf-dinov2", "hf-deit")
    anchors = ("attention.query.weight", "attention.key.weight", "attention.value.weight")
    projections = (
        *linear("attention.query", "query"),
        *linear("attention.key", "key"),
        *linear("attention.value", "value"),
        *linear("output.dense", "out"),
    )
    limits = (*PLAIN, one_width, output_bias)
