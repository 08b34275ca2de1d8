"""Hugging Face T5: ``q``, ``k``, ``v`` [H·D, E] and ``o`` [E, H·D], no biases, scale 1; self-attention and
cross-attention alike. The first layer of a stack holds ``relative_attention_bias.weight`` [buckets, H] for all of it.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout
from maskattn.convert.layouts._limits import OWN_SCALE, no_biases
from maskattn.convert.layouts._stored import separate


class HFT5(Layout):
    """Four weights, heads of any size."""

    name = "hf-t5"
    anchors = ("q.weight", "k.weight", "v.weight")
    projections = separate("q.weight", "k.weight", "v.weight", "o.weight")
    extras = (Extra("relative_attention_bias.table", "relative_attention_bias.weight", ("buckets", "H")),)
    limits = (*OWN_SCALE, no_biases)
    scale = 1.0
