"""Flax Linen multi-head attention, Flax's own and ours: ``query/kernel`` [E, H, D] ... ``out/kernel`` [H, Dv, out].

With normalize_qk, ``query_ln/scale`` and ``key_ln/scale`` [D].
"""

from __future__ import annotations

from typing import ClassVar

from maskattn.layouts.canonical import Canonical, kernels
from maskattn.layouts.flax_nnx import norms


class FlaxLinen(Canonical):
    """Paths in a tree of variables, joined by a slash; ``layouts.flatten`` makes them from a nested tree."""

    name = "flax-linen"
    aliases: ClassVar[tuple[str, ...]] = ("linen",)
    separator = "/"
    anchors: ClassVar[tuple[str, ...]] = ("query/kernel", "key/kernel", "value/kernel")
    projections = kernels("/")
    extras = norms("/")
    detectable = True
