"""Flax Linen multi-head attention, Flax's own and ours: ``query/kernel`` [E, H, D] ... ``out/kernel`` [H, Dv, out].

With normalize_qk, ``query_ln/scale`` and ``key_ln/scale`` [D]. Ours may have ``sinks`` [H].

So are the files of Vision Transformers from Google: the original release
(https://github.com/google-research/vision_transformer) has the prefix
``Transformer/encoderblock_0/MultiHeadDotProductAttention_1/``; big_vision (https://github.com/google-research/big_vision)
puts ``params/`` before and ends in ``_0``, and where it scans over layers, ``encoderblock`` holds all of them: see
``layouts.Stack``. Its bfloat16 arrays have a void dtype in the file, which ``checkpoints.open`` knows.
"""

from __future__ import annotations

from typing import ClassVar

from maskattn.convert.layouts.canonical import Canonical, kernels
from maskattn.convert.layouts.flax_nnx import beside


class FlaxLinen(Canonical):
    """Paths in a tree of variables, joined by a slash; ``layouts.flatten`` makes them from a nested tree."""

    name = "flax-linen"
    aliases: ClassVar[tuple[str, ...]] = ("linen", "vit-npz", "big-vision")
    separator = "/"
    anchors: ClassVar[tuple[str, ...]] = ("query/kernel", "key/kernel", "value/kernel")
    projections = kernels("/")
    extras = beside("/")
    detectable = True
