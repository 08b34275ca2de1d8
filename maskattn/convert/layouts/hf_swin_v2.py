"""Hugging Face Swin v2: ``self.{query,key,value}`` [E, E], the key without a bias, ``output.dense``,
``self.logit_scale`` [H, 1, 1] and ``self.continuous_position_bias_mlp``. Files and memory agree.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout, Stored
from maskattn.convert.layouts._buffers import swin_coords, swin_index
from maskattn.convert.layouts._limits import output_bias
from maskattn.convert.layouts._stored import linear
from maskattn.convert.layouts.swin_v2 import LIMITS, extras


class HFSwinV2(Layout):
    """Cosine attention with a computed position bias."""

    name = "hf-swin-v2"
    anchors = ("self.query.weight", "self.key.weight", "self.value.weight")
    projections = (
        *linear("self.query", "query"),
        Stored("self.key.weight", ("key",)),
        *linear("self.value", "value"),
        *linear("output.dense", "out"),
    )
    extras = extras("self.logit_scale", "self.continuous_position_bias_mlp")
    # Files of transformers 4 hold them.
    buffers = (swin_index("self.relative_position_index"), swin_coords("self.relative_coords_table"))
    key_bias = False
    limits = (*LIMITS, output_bias)
