"""Hugging Face CLIP, SigLIP, BART and OPT: ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, each [E, E] with
a bias.

OpenAI's CLIP is ``torch-mha``.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts._stored import linear


class HFCLIP(Layout):
    """Four square linear layers with biases."""

    name = "hf-clip"
    aliases = ("hf-siglip", "hf-bart", "hf-opt")
    anchors = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    projections = (
        *linear("q_proj", "query"),
        *linear("k_proj", "key"),
        *linear("v_proj", "value"),
        *linear("out_proj", "out"),
    )
    limits = (*PLAIN, one_width, all_biases)
