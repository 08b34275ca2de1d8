"""Flax Linen multi-head attention, Flax's own and ours: ``query/kernel`` [E, H, D] ... ``out/kernel`` [H, Dv, out]."""

from __future__ import annotations

from maskattn.layouts.canonical import Canonical
from maskattn.layouts.flax_nnx import NORMS


class FlaxLinen(Canonical):
    """Paths in a tree of variables, joined by a slash; ``layouts.flatten`` makes them from a nested tree."""

    name = "flax-linen"
    aliases = ("linen",)
    separator = "/"
    anchors = ("query/kernel", "key/kernel", "value/kernel")
    detectable = True
    refused = NORMS
