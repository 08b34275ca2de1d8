"""MaxText (https://github.com/AI-Hypercomputer/maxtext): ``query/kernel`` [E, H, D] ... ``out/kernel`` [H, D, E], with
``query_norm/scale`` and ``key_norm/scale`` [D] where it normalises them. Layers that it scans over have an axis of
layers, axis 1: see ``layouts.Stack``.

What its names do not tell is what it computes (layers/attentions.py, layers/embeddings.py, and the converter,
utils/ckpt_conversion/strategies/llama.py):

==================  =======================  ============  ==============================================
layout              1 / sqrt(D)              rotary pairs  models
==================  =======================  ============  ==============================================
``maxtext``         applied when it runs     half-split    with normalised queries, or a scale of their own:
                                                           Qwen3, Gemma 2 and 3
``maxtext-scaled``  in query's kernel, bias  half-split    without either: Mistral, Llama 2
``maxtext-llama``   in query's kernel, bias  interleaved   Llama 3.1 and later
==================  =======================  ============  ==============================================

Folding the scale in is arithmetic: it is a named step, done as MaxText's converter does it (one product in float32,
rounded once), and can be undone exactly only where sqrt(D) is a power of two: D = 16, 64, 256. At D = 128, of normally
distributed values, 15 % in bfloat16 and 38 % in float32 come back changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import Array, Extra, Limit, Step, Tensors
from maskattn.convert.layouts._limits import one_bias_flag, plain_scale, projects, same_output
from maskattn.convert.layouts.flax_linen import FlaxLinen

_FOLDED = ("query.kernel", "query.bias")


class MaxText(FlaxLinen):
    """Nothing folded in. Where a decoder's self_attention holds these names, ``detect`` lists all three layouts, and
    ``flax-linen``.
    """

    name = "maxtext"
    aliases = ()
    extras: ClassVar[tuple[Extra, ...]] = (
        Extra("query_norm.scale", "query_norm/scale", ("D",)),
        Extra("key_norm.scale", "key_norm/scale", ("D",)),
    )
    refused = {"qkv_proj/kernel": "MaxText's fused_qkv has no layout here"}
    limits: ClassVar[tuple[Limit, ...]] = (projects, one_bias_flag, same_output)

    def lives_at(self, prefix: str) -> bool:
        """Attention of a decoder: elsewhere these are Flax Linen's names."""
        return prefix.endswith("self_attention/") and "decoder/" in prefix


class MaxTextScaled(MaxText):
    """The query's kernel and bias hold 1 / sqrt(D)."""

    name = "maxtext-scaled"
    extras = ()  # nothing is folded in where queries are normalised
    limits = (*MaxText.limits, plain_scale)

    def reading(self, config: AttentionConfig, names: Iterable[str] = ()) -> tuple[Step, ...]:
        """The scale is taken out of the weights."""
        text = f"the query's kernel and bias hold 1 / sqrt({config.head_dim}): multiplied by its inverse"
        return (*super().reading(config, names), Step("unfold the scale", text, _power_of_two(config)))

    def writing(self, config: AttentionConfig) -> tuple[Step, ...]:
        """The scale goes into the weights."""
        text = f"the query's kernel and bias are multiplied by 1 / sqrt({config.head_dim})"
        return (*super().writing(config), Step("fold the scale in", text, _power_of_two(config)))

    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """As the table says; the query is new."""
        return _scaled(super().to_canonical(tensors, config), math.sqrt(config.head_dim))

    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """As the table says; the query is new."""
        return super().from_canonical(_scaled(dict(tensors), 1 / math.sqrt(config.head_dim)), config)


class MaxTextLlama(MaxTextScaled):
    """And rotary pairs are interleaved."""

    name = "maxtext-llama"
    interleaved = True


def _scaled(tensors: Tensors, factor: float) -> Tensors:
    for name in _FOLDED:
        if name in tensors:
            array = tensors[name]
            wide = np.promote_types(array.dtype, np.float32)
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                product = (array.astype(wide) * wide.type(factor)).astype(array.dtype)
            if not np.array_equal(np.isfinite(product), np.isfinite(array)):
                raise ValueError(f"{name}: times {factor} it overflows {array.dtype}")
            tensors[name] = product
    return tensors


def _power_of_two(config: AttentionConfig) -> bool:
    return math.frexp(math.sqrt(config.head_dim))[0] == 0.5
