"""``torch.nn.MultiheadAttention``, and OpenAI's CLIP, which uses it.

``in_proj_weight`` [3E, E] in blocks query, key, value; where ``kdim`` or ``vdim`` differ, ``q_proj_weight`` [E, E],
``k_proj_weight`` [E, kdim] and ``v_proj_weight`` [E, vdim]. ``in_proj_bias`` [3E] is fused in both;
``out_proj.weight`` [E, E], ``out_proj.bias``. With ``add_bias_kv``, ``bias_k`` and ``bias_v`` [1, 1, E].
"""

from __future__ import annotations

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import PROJECTIONS, Extra, Layout, Stored
from maskattn.convert.layouts._limits import PLAIN, one_bias_flag
from maskattn.convert.layouts._stored import linear
from maskattn.convert.layouts.maskattn_torch import one_matrix


class TorchMHA(Layout):
    """PyTorch's own multi-head attention: one head count, one head size, one flag for all biases."""

    name = "torch-mha"
    aliases = ("torch.nn.MultiheadAttention", "openai-clip")
    anchors = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    projections = (
        Stored("in_proj_weight", PROJECTIONS),
        Stored("q_proj_weight", ("query",)),
        Stored("k_proj_weight", ("key",)),
        Stored("v_proj_weight", ("value",)),
        Stored("in_proj_bias", PROJECTIONS, "bias"),
        *linear("out_proj", "out"),
    )
    extras = (
        Extra("bias_k", "bias_k", (1, 1, "K*D"), ("K", "D")),
        Extra("bias_v", "bias_v", (1, 1, "K*Dv"), ("K", "Dv")),
    )
    limits = (*PLAIN, one_bias_flag)

    def stored(self, config: AttentionConfig) -> tuple[Stored, ...]:
        """``in_proj_weight`` or three weights, a fused bias, and ``out_proj``."""
        return tuple(
            entry
            for entry in super().stored(config)
            if entry.roles == ("out",) or entry.part == "bias" or one_matrix(config, entry)
        )
