"""BERT and OPT of alpa (https://github.com/alpa-projects/alpa): one ``self/qvk_combined/kernel`` [E, 3E] whose columns
are (H, D, 3), query, **value**, key of each feature side by side; ``output/dense/kernel`` [E, E], [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import Array, Layout, Stored, Tensors
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width
from maskattn.convert.layouts.flax_bert import dense

_ORDER = ("query", "value", "key")


class SideBySide(Stored):
    """[in, H·D·3] (a bias [H·D·3]): the last axis, of size 3, tells query, value and key apart."""

    def split(self, array: Array, config: AttentionConfig) -> Tensors:
        """The tensor -> three canonical tensors, views."""
        parts = array.reshape(*array.shape[:-1], config.num_heads, config.head_dim, 3)
        return {name: parts[..., i] for i, name in enumerate(self.canonical)}

    def join(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Array:
        """Three canonical tensors -> the tensor."""
        parts = np.stack([tensors[name] for name in self.canonical], axis=-1)
        return parts.reshape(*parts.shape[:-3], -1)


class Alpa(Layout):
    """Plain multi-head attention with biases."""

    name = "alpa"
    separator = "/"
    anchors = ("self/qvk_combined/kernel",)
    outside = ("output/LayerNorm/scale", "output/LayerNorm/bias")
    projections = (
        SideBySide("self/qvk_combined/kernel", _ORDER, "kernel", "conv1d"),
        SideBySide("self/qvk_combined/bias", _ORDER, "bias", "conv1d"),
        *dense("output/dense", "out"),
    )
    limits = (*PLAIN, one_width, all_biases)
