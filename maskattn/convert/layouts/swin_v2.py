"""Swin v2, by its authors and in timm: ``qkv.weight`` [3·H·D, E], ``q_bias`` and ``v_bias`` [H·D] (the key has none),
``proj``, ``logit_scale`` [H, 1, 1] of the cosine attention, and ``cpb_mlp``, which computes the position bias.

The offsets that ``cpb_mlp`` is given, and the index into its results, follow from the windows.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import PROJECTIONS, Extra, Layout, Stored
from maskattn.convert.layouts._buffers import swin_coords, swin_index
from maskattn.convert.layouts._limits import OWN_SCALE, heads_make_width
from maskattn.convert.layouts._stored import linear

LIMITS = (*OWN_SCALE, heads_make_width)


def extras(scale: str, mlp: str) -> tuple[Extra, ...]:
    """``scale``: the name of the logit scale. ``mlp``: that of the position bias's two layers."""
    return (
        Extra("logit_scale", scale, ("H", 1, 1), ("H",), required=True),
        Extra("cpb_mlp.0.kernel", f"{mlp}.0.weight", ("hidden", 2), (2, "hidden"), required=True),
        Extra("cpb_mlp.0.bias", f"{mlp}.0.bias", ("hidden",), required=True),
        Extra("cpb_mlp.2.kernel", f"{mlp}.2.weight", ("H", "hidden"), ("hidden", "H"), required=True),
    )


class SwinV2(Layout):
    """Cosine attention with a computed position bias."""

    name = "swin-v2"
    aliases = ("timm-swin-v2",)
    anchors = ("qkv.weight",)
    projections = (
        Stored("qkv.weight", PROJECTIONS),
        Stored("q_bias", ("query",), "bias"),
        Stored("v_bias", ("value",), "bias"),
        *linear("proj", "out"),
    )
    extras = extras("logit_scale", "cpb_mlp")
    buffers = (swin_index("relative_position_index"), swin_coords("relative_coords_table"))
    key_bias = False
    limits = LIMITS
