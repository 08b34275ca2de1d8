"""GPT-NeoX, BLOOM and Falcon: ``query_key_value`` with query, key and value within each head, and ``dense``.

Rows are (K, G + 2, D): the G = H / K query heads of a key/value head, then its key, then its value. For GPT-NeoX, BLOOM
and the Falcons without grouping K = H, which is (H, 3, D); for multi-query Falcons K = 1, which is (H + 2, D).
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._buffers import CAUSAL, inv_freq
from maskattn.convert.layouts._limits import GROUPED, heads_make_width, no_softcap, plain_scale
from maskattn.convert.layouts._stored import linear


class HFNeoX(Layout):
    """One matrix, by key/value heads."""

    name = "hf-neox"
    aliases = ("hf-gpt-neox", "hf-bloom", "hf-falcon")
    anchors = ("query_key_value.weight",)
    projections = (
        *linear("query_key_value", "query", "key", "value", order="groups"),
        *linear("dense", "out"),
    )
    # Files of transformers 4 hold them.
    buffers = (*CAUSAL, inv_freq("rotary_emb.inv_freq"), inv_freq("maybe_rotary.inv_freq"))
    limits = (*GROUPED, heads_make_width, plain_scale, no_softcap)
