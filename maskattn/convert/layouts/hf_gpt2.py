"""Hugging Face GPT-2, whose Conv1D stores [in, out]: ``c_attn.weight`` [E, 3E] in blocks query, key, value, and
``c_proj.weight`` [E, E]. Cross-attention: ``q_attn.weight`` [E, E] and ``c_attn.weight`` [E, 2E] in blocks key, value.

Old checkpoints hold the causal mask as ``bias`` [1, 1, positions, positions], and ``masked_bias``.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._buffers import CAUSAL
from maskattn.convert.layouts._limits import OWN_SCALE, all_biases, heads_make_width
from maskattn.convert.layouts._stored import linear

_LIMITS = (*OWN_SCALE, heads_make_width, all_biases)


class HFGPT2(Layout):
    """Self-attention."""

    name = "hf-gpt2"
    aliases = ("gpt2",)
    anchors = ("c_attn.weight",)
    without = ("q_attn.weight",)
    projections = (
        *linear("c_attn", "query", "key", "value", form="conv1d"),
        *linear("c_proj", "out", form="conv1d"),
    )
    buffers = CAUSAL
    limits = _LIMITS


class HFGPT2Cross(Layout):
    """Attention to an encoder of the same width."""

    name = "hf-gpt2-cross"
    anchors = ("q_attn.weight",)
    projections = (
        *linear("q_attn", "query", form="conv1d"),
        *linear("c_attn", "key", "value", form="conv1d"),
        *linear("c_proj", "out", form="conv1d"),
    )
    buffers = CAUSAL
    limits = _LIMITS
