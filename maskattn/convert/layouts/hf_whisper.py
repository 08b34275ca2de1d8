"""Hugging Face Whisper: ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, each [E, E]; the key has no bias, which no
softmax would see.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout, Stored
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts._stored import linear


class HFWhisper(Layout):
    """Four square linear layers, three of them with biases."""

    name = "hf-whisper"
    anchors = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    projections = (
        *linear("q_proj", "query"),
        Stored("k_proj.weight", ("key",)),
        *linear("v_proj", "value"),
        *linear("out_proj", "out"),
    )
    key_bias = False
    limits = (*PLAIN, one_width, all_biases)
