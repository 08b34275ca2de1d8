"""Hugging Face T5: ``q``, ``k``, ``v`` [H·D, E] and ``o`` [E, H·D], no biases, scale 1; self-attention and
cross-attention alike. The first layer of a stack holds ``relative_attention_bias.weight`` [buckets, H] for all of it.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout, Stored
from maskattn.convert.layouts._limits import (
    no_biases,
    one_head_count,
    one_head_size,
    one_width,
    projects,
    same_output,
)


class HFT5(Layout):
    """Four weights, heads of any size."""

    name = "hf-t5"
    anchors = ("q.weight", "k.weight", "v.weight")
    projections = (
        Stored("q.weight", ("query",)),
        Stored("k.weight", ("key",)),
        Stored("v.weight", ("value",)),
        Stored("o.weight", ("out",)),
    )
    extras = (Extra("relative_attention_bias.table", "relative_attention_bias.weight", ("buckets", "H")),)
    limits = (projects, one_head_count, one_head_size, same_output, one_width, no_biases)
    scale = 1.0
