"""The canonical form of an attention layer: heads are axes, inputs come first, rotary pairs are half-split.

===============  ==================  =============  =========
query.kernel     [E, H, D]           query.bias     [H, D]
key.kernel       [kdim, K, D]        key.bias       [K, D]
value.kernel     [vdim, K, Dv]       value.bias     [K, Dv]
out.kernel       [H, Dv, out]        out.bias       [out]
===============  ==================  =============  =========

Beside these a layer may have extras, which some layouts store and others have no place for:

=============================================  ==================================================================
query_norm.scale  query_norm.bias              [D], or [H, D]: a norm of each query head
key_norm.scale    key_norm.bias                [D], or [K, D]
norm.scale        norm.bias                    [H * Dv]: a norm before the output projection
bias_k            bias_v                       [K, D] · [K, Dv]: one more key and value, learned
relative_position_bias.table                   [rows, H]: Swin
relative_attention_bias.table                  [buckets, H]: T5
logit_scale                                    [H]: Swin v2
sinks                                          [H]: learned logits in the softmax's denominator; there where the
                                               configuration has `sinks`
cpb_mlp.0.kernel  cpb_mlp.0.bias               [2, hidden] · [hidden]: Swin v2's continuous position bias
cpb_mlp.2.kernel                               [hidden, H]
gate.kernel       gate.bias                    [E, H * Dv] or [E, H] · [H * Dv] or [H]: of a gated output
query_global.kernel  query_global.bias         [E, H * D] · [H * D]: of global tokens; key_global [kdim, K * D],
                                               value_global [vdim, K * Dv]
pos_key.kernel    pos_key.bias                 [E, H * D] · [H * D]: of relative positions, DeBERTa; pos_query too
=============================================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import PROJECTIONS, Extra, Layout, Stored
from maskattn.convert.layouts._extras import EXTRAS
from maskattn.convert.layouts._infer import need


def kernels(separator: str) -> tuple[Stored, ...]:
    """Kernels and biases with heads as axes, as Flax stores them."""
    return tuple(
        Stored(f"{role}{separator}{part}", (role,), part, form="kernel")
        for role in (*PROJECTIONS, "out")
        for part in ("kernel", "bias")
    )


class Canonical(Layout):
    """What every conversion passes through. Its names and shapes are those of ``flax-nnx``, which ``detect``
    reports.
    """

    name = "canonical"
    anchors: ClassVar[tuple[str, ...]] = ("query.kernel", "key.kernel", "value.kernel")
    projections = kernels(".")
    extras: ClassVar[tuple[Extra, ...]] = tuple(
        Extra(name, name, axes) for name, forms in EXTRAS.items() for axes in forms
    )
    detectable = False
    stores_heads = True

    def infer(self, tensors: Mapping[str, object], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """Every size is in the shapes; ``num_heads`` and ``num_kv_heads``, where given, must agree with them."""
        embed_dim, heads, dim = need(tensors, self._join("query", "kernel"), 3)
        kdim, kv_heads, _ = need(tensors, self._join("key", "kernel"), 3)
        vdim, _, v_dim = need(tensors, self._join("value", "kernel"), 3)
        out_dim = need(tensors, self._join("out", "kernel"), 3)[2]
        for what, given, stored in (("num_heads", num_heads, heads), ("num_kv_heads", num_kv_heads, kv_heads)):
            if given is not None and given != stored:
                raise ValueError(f"{what} is {given}, but the kernels have {stored}")
        return AttentionConfig(
            embed_dim,
            heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            v_head_dim=v_dim,
            kdim=kdim,
            vdim=vdim,
            out_dim=out_dim,
            qkv_bias=any(self._join(role, "bias") in tensors for role in PROJECTIONS),
            out_bias=self._join("out", "bias") in tensors,
            sinks="sinks" in tensors,
        )

    def _join(self, role: str, part: str) -> str:
        return role + self.separator + part


CANONICAL = Canonical()
"""The layout that all others are converted from and to."""
