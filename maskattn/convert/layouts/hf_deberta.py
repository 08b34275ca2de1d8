"""Hugging Face DeBERTa v2 and v3: ``self.query_proj``, ``self.key_proj``, ``self.value_proj`` and ``output.dense``,
each [E, E] with a bias; ``self.pos_key_proj`` and ``self.pos_query_proj`` where positions have their own projections.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout
from maskattn.convert.layouts._limits import OWN_SCALE, all_biases, heads_make_width
from maskattn.convert.layouts._stored import linear


class HFDeberta(Layout):
    """Four square linear layers with biases, and those of positions."""

    name = "hf-deberta"
    aliases = ("hf-deberta-v2",)
    anchors = ("self.query_proj.weight", "self.key_proj.weight", "self.value_proj.weight")
    outside = ("output.LayerNorm.weight", "output.LayerNorm.bias")
    projections = (
        *linear("self.query_proj", "query"),
        *linear("self.key_proj", "key"),
        *linear("self.value_proj", "value"),
        *linear("output.dense", "out"),
    )
    extras = tuple(
        Extra(f"pos_{role}.{part}", f"self.pos_{role}_proj.{name}", axes, to)
        for role in ("key", "query")
        for part, name, axes, to in (
            ("kernel", "weight", ("H*D", "E"), ("E", "H*D")),
            ("bias", "bias", ("H*D",), None),
        )
    )
    limits = (*OWN_SCALE, heads_make_width, all_biases)
