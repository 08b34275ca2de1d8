"""Megatron-LM's first checkpoints (checkpoint_version 0): ``query_key_value`` in blocks query, key, value; ``dense``.

The names, and for K = H the shapes, are those of ``hf-neox``, whose rows are in another order: tensors alone cannot
tell which of the two they are.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import GROUPED, heads_make_width
from maskattn.convert.layouts._stored import linear


class Megatron(Layout):
    """One matrix, by blocks."""

    name = "megatron-v0"
    anchors = ("query_key_value.weight",)
    projections = (*linear("query_key_value", "query", "key", "value"), *linear("dense", "out"))
    limits = (*GROUPED, heads_make_width)
