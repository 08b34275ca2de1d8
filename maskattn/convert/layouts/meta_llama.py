"""Meta's own Llama checkpoints: ``wq`` [H·D, E], ``wk`` and ``wv`` [K·D, E], ``wo`` [E, H·D], no biases; rotary pairs
are interleaved, so that rows of query and key change places within each head on the way to Hugging Face's.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._limits import GROUPED, no_biases
from maskattn.convert.layouts._stored import separate


class MetaLlama(Layout):
    """Four weights."""

    name = "meta-llama"
    anchors = ("wq.weight", "wk.weight", "wv.weight")
    projections = separate("wq.weight", "wk.weight", "wv.weight", "wo.weight")
    interleaved = True
    limits = (*GROUPED, no_biases)
