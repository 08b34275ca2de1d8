"""``torch.nn.MultiheadAttention``.

``in_proj_weight`` [3E, E] in blocks query, key, value; where ``kdim`` or ``vdim`` differ, ``q_proj_weight`` [E, E],
``k_proj_weight`` [E, kdim] and ``v_proj_weight`` [E, vdim]. ``in_proj_bias`` [3E] is fused in both;
``out_proj.weight`` [E, E], ``out_proj.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.layouts._base import (
    PROJECTIONS,
    Array,
    Layout,
    Shape,
    Tensors,
    divide,
    heads_of,
    kernel_from_linear,
    linear_from_kernel,
    linear_from_out,
    linear_shapes,
    need,
    out_from_linear,
)
from maskattn.layouts._limits import plain_multihead

_SEPARATE = {"query": "q_proj_weight", "key": "k_proj_weight", "value": "v_proj_weight"}
_EXTRA = "a learned extra key and value has no canonical form yet"


def _fused(config: AttentionConfig) -> bool:
    return config.key_dim == config.embed_dim == config.value_dim


class TorchMHA(Layout):
    """PyTorch's own multi-head attention: one head count, one head size, one flag for all biases."""

    name = "torch-mha"
    aliases = ("torch.nn.MultiheadAttention",)
    anchors = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    refused = {"bias_k": _EXTRA, "bias_v": _EXTRA}

    def unsupported(self, config: AttentionConfig) -> list[str]:
        """Grouped heads, head sizes that do not make up ``embed_dim``, another scale, biases on one side only."""
        reasons = plain_multihead(config)
        if config.qkv_bias != config.out_bias:
            reasons.append(f"qkv_bias is {config.qkv_bias} and out_bias {config.out_bias}, but one flag sets both")
        return reasons

    def shapes(self, config: AttentionConfig) -> dict[str, Shape]:
        """``in_proj_weight`` or three weights, a fused bias, and ``out_proj``."""
        linear = linear_shapes(config)
        rows = sum(linear[role][0] for role in PROJECTIONS)
        shapes: dict[str, Shape] = {_SEPARATE[role]: linear[role] for role in PROJECTIONS}
        if _fused(config):
            shapes = {"in_proj_weight": (rows, config.embed_dim)}
        if config.qkv_bias:
            shapes["in_proj_bias"] = (rows,)
        shapes["out_proj.weight"] = linear["out"]
        if config.out_bias:
            shapes["out_proj.bias"] = linear["out"][:1]
        return shapes

    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Splits the blocks and gives heads an axis."""
        out: Tensors = {}
        if _fused(config):
            weights = np.split(tensors["in_proj_weight"], 3)
        else:
            weights = [tensors[_SEPARATE[role]] for role in PROJECTIONS]
        for role, weight in zip(PROJECTIONS, weights, strict=True):
            out[f"{role}.kernel"] = kernel_from_linear(weight, heads_of(role, config))
        if config.qkv_bias:
            for role, bias in zip(PROJECTIONS, np.split(tensors["in_proj_bias"], 3), strict=True):
                out[f"{role}.bias"] = bias.reshape(heads_of(role, config), -1)
        out["out.kernel"] = out_from_linear(tensors["out_proj.weight"], config.num_heads)
        if config.out_bias:
            out["out.bias"] = tensors["out_proj.bias"]
        return out

    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Folds heads into rows and stacks the blocks."""
        out: Tensors = {}
        weights = [linear_from_kernel(tensors[f"{role}.kernel"]) for role in PROJECTIONS]
        if _fused(config):
            out["in_proj_weight"] = np.concatenate(weights)
        else:
            out.update({_SEPARATE[role]: weight for role, weight in zip(PROJECTIONS, weights, strict=True)})
        if config.qkv_bias:
            out["in_proj_bias"] = np.concatenate([tensors[f"{role}.bias"].reshape(-1) for role in PROJECTIONS])
        out["out_proj.weight"] = linear_from_out(tensors["out.kernel"])
        if config.out_bias:
            out["out_proj.bias"] = tensors["out.bias"]
        return out

    def infer(self, tensors: Mapping[str, Array], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """Needs ``num_heads``."""
        if num_heads is None:
            raise ValueError(f"num_heads is needed: {self.name} does not store it")
        if num_kv_heads not in (None, num_heads):
            raise ValueError(f"num_kv_heads is {num_kv_heads}, but {self.name} has one head count, {num_heads}")
        if "in_proj_weight" in tensors:
            embed_dim = kdim = vdim = need(tensors, "in_proj_weight", 2)[1]
        else:
            embed_dim = need(tensors, "q_proj_weight", 2)[1]
            kdim, vdim = need(tensors, "k_proj_weight", 2)[1], need(tensors, "v_proj_weight", 2)[1]
        divide(embed_dim, num_heads, "embed_dim over num_heads")
        bias = "in_proj_bias" in tensors
        return AttentionConfig(embed_dim, num_heads, kdim=kdim, vdim=vdim, qkv_bias=bias, out_bias=bias)
