"""Hugging Face Swin, in both its dialects, with a ``relative_position_bias_table`` [(2W-1)(2W-1), H].

In files ``self.{query,key,value}`` [E, E] and ``output.dense``, as in BERT, and ``self.relative_position_bias_table``.
In memory transformers 5 calls them ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj`` and
``relative_position_bias.relative_position_bias_table``.
"""

from __future__ import annotations

from typing import ClassVar

from maskattn.convert.layouts._base import Extra, Layout
from maskattn.convert.layouts._buffers import swin_index
from maskattn.convert.layouts._limits import PLAIN, one_width, output_bias
from maskattn.convert.layouts._stored import linear

_TABLE = "relative_position_bias.table"


class HFSwin(Layout):
    """As files hold it. Those of transformers 4 also hold the index, which follows from the window."""

    name = "hf-swin"
    anchors = ("self.query.weight", "self.key.weight", "self.value.weight")
    projections = (
        *linear("self.query", "query"),
        *linear("self.key", "key"),
        *linear("self.value", "value"),
        *linear("output.dense", "out"),
    )
    extras: ClassVar[tuple[Extra, ...]] = (
        Extra(_TABLE, "self.relative_position_bias_table", ("rows", "H"), required=True),
    )
    buffers = (swin_index("self.relative_position_index"),)
    limits = (*PLAIN, one_width, output_bias)


class HFSwinMemory(Layout):
    """As transformers 5 holds it in memory."""

    name = "hf-swin-memory"
    anchors = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    projections = (
        *linear("q_proj", "query"),
        *linear("k_proj", "key"),
        *linear("v_proj", "value"),
        *linear("o_proj", "out"),
    )
    extras = (Extra(_TABLE, "relative_position_bias.relative_position_bias_table", ("rows", "H"), required=True),)
    limits = (*PLAIN, one_width, output_bias)
