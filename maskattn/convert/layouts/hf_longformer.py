"""Hugging Face Longformer: BERT's names, and ``self.query_global``, ``self.key_global``, ``self.value_global`` [E, E]
for tokens that attend to everything.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts._stored import linear

_AXES = {"query": ("H*D", "E"), "key": ("K*D", "kdim"), "value": ("K*Dv", "vdim")}


class HFLongformer(Layout):
    """Seven square linear layers with biases."""

    name = "hf-longformer"
    anchors = ("self.query.weight", "self.key.weight", "self.value.weight")
    outside = ("output.LayerNorm.weight", "output.LayerNorm.bias")
    projections = (
        *linear("self.query", "query"),
        *linear("self.key", "key"),
        *linear("self.value", "value"),
        *linear("output.dense", "out"),
    )
    extras = tuple(
        extra
        for role, (rows, width) in _AXES.items()
        for extra in (
            Extra(f"{role}_global.kernel", f"self.{role}_global.weight", (rows, width), (width, rows), required=True),
            Extra(f"{role}_global.bias", f"self.{role}_global.bias", (rows,), required=True),
        )
    )
    limits = (*PLAIN, one_width, all_biases)
