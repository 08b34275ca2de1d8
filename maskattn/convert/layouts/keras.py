"""Keras ``MultiHeadAttention`` and ``GroupQueryAttention``: EinsumDense layers ``query`` [E, H, D], ``key``, ``value``
and ``attention_output`` [H, Dv, out], by the paths of their variables (``variable.path``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import Extra
from maskattn.convert.layouts._limits import (
    no_softcap,
    one_bias_flag,
    one_head_size,
    plain_scale,
    projects,
    same_output,
)
from maskattn.convert.layouts.flax_linen import FlaxLinen

_GATE = "an output gate has no canonical form"


def grouped(config: AttentionConfig) -> list[str]:
    """GroupQueryAttention has one head size, and an output as wide as the input."""
    return [] if config.num_kv_heads == config.num_heads else one_head_size(config) + same_output(config)


class Keras(FlaxLinen):
    """The names of Flax Linen, but for the output."""

    name = "keras"
    aliases = ()
    anchors = ("query/kernel", "key/kernel", "value/kernel")
    without = ("out/kernel",)
    projections = tuple(replace(e, name=e.name.replace("out/", "attention_output/")) for e in FlaxLinen.projections)
    extras: ClassVar[tuple[Extra, ...]] = ()
    refused = {"gate/kernel": _GATE, "gate/bias": _GATE}
    limits = (projects, one_bias_flag, plain_scale, no_softcap, grouped)

    def _join(self, role: str, part: str) -> str:
        return super()._join("attention_output" if role == "out" else role, part)
