"""Hugging Face BEiT as transformers 5 holds it in memory: ``attention.q_proj``, ``attention.k_proj`` without a bias,
``attention.v_proj`` and ``attention.o_proj``, each [E, E], and ``relative_position_bias.relative_position_bias_table``,
of which three rows are for the token that is no place of the image. The prefix of a layer is ``layers.0.``.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout, Stored
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts._stored import linear


class HFBeitMemory(Layout):
    """Four square linear layers and a table."""

    name = "hf-beit-memory"
    anchors = ("attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight")
    outside = tuple(
        name
        for module in ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2")
        for name in (f"{module}.weight", f"{module}.bias")
    ) + ("lambda_1", "lambda_2")
    projections = (
        *linear("attention.q_proj", "query"),
        Stored("attention.k_proj.weight", ("key",)),
        *linear("attention.v_proj", "value"),
        *linear("attention.o_proj", "out"),
    )
    extras = (
        Extra(
            "relative_position_bias.table",
            "relative_position_bias.relative_position_bias_table",
            ("rows", "H"),
            required=True,
        ),
    )
    key_bias = False
    limits = (*PLAIN, one_width, all_biases)
