"""The files of Vision Transformers from Google: Flax Linen's attention under the name that Linen gave the module.

The original release (https://github.com/google-research/vision_transformer) holds, for layer i,
``Transformer/encoderblock_i/MultiHeadDotProductAttention_1/query/kernel`` [E, H, D]; big_vision
(https://github.com/google-research/big_vision) puts ``params/`` before and numbers the module 0. The prefix of a layer
is that of its block. Where big_vision scans over layers, ``encoderblock`` holds all of them: see ``layouts.Stack``.
Its bfloat16 arrays have a void dtype in the file, which ``checkpoints.open`` knows.
"""

from __future__ import annotations

from maskattn.layouts._in_module import InModule, inside


class ViTNpz(InModule):
    """The original release. ``detect`` reports ``flax-linen``, which has these names, a module further in."""

    name = "vit-npz"
    module = "MultiHeadDotProductAttention_1"
    anchors = (f"{module}/query/kernel",)
    projections = inside(module)
    detectable = False


class BigVision(InModule):
    """big_vision: ViT, SigLIP, PaliGemma's image tower; and whoever leaves it to Linen to name the module."""

    name = "big-vision"
    module = "MultiHeadDotProductAttention_0"
    anchors = (f"{module}/query/kernel",)
    projections = inside(module)
    detectable = False
