"""FlaxGPT2 of Hugging Face transformers 4, whose Conv1D stores [out, in], the transpose of PyTorch's Conv1D.

``c_attn/kernel`` [3E, E] in blocks query, key, value, and ``c_proj/kernel`` [E, E]. Cross-attention: ``q_attn/kernel``
[E, E] and ``c_attn/kernel`` [2E, E] in blocks key, value.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts.flax_bert import dense


class FlaxGPT2(Layout):
    """Self-attention."""

    name = "flax-gpt2"
    aliases = ("hf-flax-gpt2",)
    separator = "/"
    anchors = ("c_attn/kernel",)
    without = ("q_attn/kernel",)
    projections = (
        *dense("c_attn", "query", "key", "value", form="linear"),
        *dense("c_proj", "out", form="linear"),
    )
    limits = (*PLAIN, one_width, all_biases)


class FlaxGPT2Cross(Layout):
    """Attention to an encoder of the same width."""

    name = "flax-gpt2-cross"
    separator = "/"
    anchors = ("q_attn/kernel",)
    projections = (
        *dense("q_attn", "query", form="linear"),
        *dense("c_attn", "key", "value", form="linear"),
        *dense("c_proj", "out", form="linear"),
    )
    limits = (*PLAIN, one_width, all_biases)
