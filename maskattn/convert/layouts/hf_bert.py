"""Hugging Face BERT: ``self.query``, ``self.key``, ``self.value`` and ``output.dense``, each [E, E].

The prefix of a layer is that of its ``BertAttention``, for example ``encoder.layer.0.attention.``.
``output.LayerNorm``, which follows the residual connection, is not attention and stays outside. RoBERTa and ELECTRA
use the same names.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts._stored import linear


class HFBert(Layout):
    """Four square linear layers with biases."""

    name = "hf-bert"
    aliases = ("bert", "hf-roberta")
    anchors = ("self.query.weight", "self.key.weight", "self.value.weight")
    # gamma and beta are the names of checkpoints from before 2019.
    outside = tuple(f"output.LayerNorm.{part}" for part in ("weight", "bias", "gamma", "beta"))
    projections = (
        *linear("self.query", "query"),
        *linear("self.key", "key"),
        *linear("self.value", "value"),
        *linear("output.dense", "out"),
    )
    refused = {
        "self.distance_embedding.weight": "relative position embeddings have no canonical form",
        "self.relative_position_bias_table": "a layer with a table is of layout hf-swin",
    }
    limits = (*PLAIN, one_width, all_biases)
