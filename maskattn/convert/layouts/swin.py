"""Swin v1, by its authors and in timm: ``qkv`` [3·H·D, E] and ``proj``, as in timm's vision transformers, and
``relative_position_bias_table`` [(2Wh-1)(2Ww-1), H].

The authors' checkpoints also hold ``relative_position_index`` [N, N], which follows from the window; timm's do not.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra, Layout
from maskattn.convert.layouts._buffers import SWIN_INDEX
from maskattn.convert.layouts._limits import OWN_SCALE
from maskattn.convert.layouts._stored import linear


class TimmSwin(Layout):
    """Without the index."""

    name = "timm-swin"
    anchors = ("qkv.weight",)
    projections = (*linear("qkv", "query", "key", "value"), *linear("proj", "out"))
    extras = (Extra("relative_position_bias.table", "relative_position_bias_table", ("rows", "H"), required=True),)
    refused = {"relative_position_index": "a layer with an index is of layout swin"}
    limits = OWN_SCALE


class Swin(TimmSwin):
    """With the index, for square windows."""

    name = "swin"
    buffers = (SWIN_INDEX,)
    refused = {}
