"""``equinox.nn.MultiheadAttention``: ``query_proj.weight`` [H·D, E], ``key_proj``, ``value_proj`` and
``output_proj.weight`` [out, H·Dv], by the paths of their attributes. Every width and head size may differ.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import no_softcap, one_head_count, plain_scale, projects
from maskattn.convert.layouts._stored import linear


class Equinox(Layout):
    """Linear layers as PyTorch's, rows (heads, head size). A bias on some of query, key and value alone is refused."""

    name = "equinox"
    anchors = ("query_proj.weight", "key_proj.weight", "value_proj.weight")
    projections = (
        *linear("query_proj", "query"),
        *linear("key_proj", "key"),
        *linear("value_proj", "value"),
        *linear("output_proj", "out"),
    )
    limits = (projects, one_head_count, plain_scale, no_softcap)
    one_head_size = False
