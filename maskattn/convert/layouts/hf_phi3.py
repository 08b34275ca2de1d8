"""Hugging Face Phi-3: ``qkv_proj.weight`` [(H + 2K)·D, E] in blocks query, key, value, ``o_proj.weight`` [E, H·D], no
biases; rotary pairs are half-split.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import PROJECTIONS, Layout, Stored
from maskattn.convert.layouts._buffers import inv_freq
from maskattn.convert.layouts._limits import GROUPED, no_biases


class HFPhi3(Layout):
    """One matrix, by blocks, key/value heads in any number."""

    name = "hf-phi3"
    anchors = ("qkv_proj.weight",)
    projections = (Stored("qkv_proj.weight", PROJECTIONS), Stored("o_proj.weight", ("out",)))
    buffers = (inv_freq("rotary_emb.inv_freq"),)
    limits = (*GROUPED, no_biases)
