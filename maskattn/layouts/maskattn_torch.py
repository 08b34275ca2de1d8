"""``maskattn_torch.MultiHeadAttention``, the seed module, and timm's vision transformers.

Where query, key and value have one width: ``qkv.weight`` [H·D + K·D + K·Dv, E] in blocks query, key, value, each head-
major, and ``qkv.bias``. Otherwise ``q_proj``, ``k_proj`` and ``v_proj``. The output is ``proj.weight`` [out, H·Dv],
``proj.bias``.
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
    projection_biases,
    sections,
)

_SEPARATE = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
_NORM = "normalised queries and keys have no canonical form yet"


def _fused(config: AttentionConfig) -> bool:
    return config.key_dim == config.embed_dim == config.value_dim


class MaskattnTorch(Layout):
    """Fused ``qkv`` and ``proj``; ``q_proj``, ``k_proj``, ``v_proj`` where the widths differ."""

    name = "maskattn-torch"
    aliases = ("timm", "seed")
    anchors = ("qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")
    refused = {
        "q_norm.weight": _NORM,
        "q_norm.bias": _NORM,
        "k_norm.weight": _NORM,
        "k_norm.bias": _NORM,
        "norm.weight": "a norm before the output projection has no canonical form yet",
        "norm.bias": "a norm before the output projection has no canonical form yet",
        "relative_position_bias_table": "relative position biases have no canonical form yet",
    }

    def shapes(self, config: AttentionConfig) -> dict[str, Shape]:
        """``qkv`` or three projections, then ``proj``; weights are [out features, in features]."""
        if not config.project:
            return {}
        linear = linear_shapes(config)
        weights: dict[str, Shape] = {_SEPARATE[role]: linear[role] for role in PROJECTIONS}
        if _fused(config):
            weights = {"qkv": (sum(linear[role][0] for role in PROJECTIONS), config.embed_dim)}
        weights["proj"] = linear["out"]
        shapes: dict[str, Shape] = {}
        for module, shape in weights.items():
            shapes[f"{module}.weight"] = shape
            if config.out_bias if module == "proj" else projection_biases(config):
                shapes[f"{module}.bias"] = shape[:1]
        return shapes

    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Splits the blocks and gives heads an axis."""
        out: Tensors = {}
        if not config.project:
            return out
        for part in ("weight", "bias") if projection_biases(config) else ("weight",):
            if _fused(config):
                rows = np.split(tensors[f"qkv.{part}"], sections(config))
            else:
                rows = [tensors[f"{_SEPARATE[role]}.{part}"] for role in PROJECTIONS]
            for role, array in zip(PROJECTIONS, rows, strict=True):
                heads = heads_of(role, config)
                if part == "weight":
                    out[f"{role}.kernel"] = kernel_from_linear(array, heads)
                else:
                    out[f"{role}.bias"] = array.reshape(heads, -1)
        out["out.kernel"] = out_from_linear(tensors["proj.weight"], config.num_heads)
        if config.out_bias:
            out["out.bias"] = tensors["proj.bias"]
        return out

    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Folds heads into rows and stacks the blocks."""
        out: Tensors = {}
        if not config.project:
            return out
        for part in ("weight", "bias") if projection_biases(config) else ("weight",):
            if part == "weight":
                rows = [linear_from_kernel(tensors[f"{role}.kernel"]) for role in PROJECTIONS]
            else:
                rows = [tensors[f"{role}.bias"].reshape(-1) for role in PROJECTIONS]
            if _fused(config):
                out[f"qkv.{part}"] = np.concatenate(rows)
            else:
                out.update({f"{_SEPARATE[role]}.{part}": array for role, array in zip(PROJECTIONS, rows, strict=True)})
        out["proj.weight"] = linear_from_out(tensors["out.kernel"])
        if config.out_bias:
            out["proj.bias"] = tensors["out.bias"]
        return out

    def infer(self, tensors: Mapping[str, Array], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """Needs ``num_heads``; ``num_kv_heads`` is taken to be the same where not given."""
        if num_heads is None:
            raise ValueError(f"num_heads is needed: {self.name} does not store it")
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        out_dim, out_in = need(tensors, "proj.weight", 2)
        v_dim = divide(out_in, num_heads, "columns of proj.weight over num_heads")
        if "qkv.weight" in tensors:
            rows, embed_dim = need(tensors, "qkv.weight", 2)
            kdim = vdim = embed_dim
            dim = divide(rows - kv_heads * v_dim, num_heads + kv_heads, "rows of qkv.weight over its heads")
        else:
            rows, embed_dim = need(tensors, "q_proj.weight", 2)
            kdim, vdim = need(tensors, "k_proj.weight", 2)[1], need(tensors, "v_proj.weight", 2)[1]
            dim = divide(rows, num_heads, "rows of q_proj.weight over num_heads")
        return AttentionConfig(
            embed_dim,
            num_heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            v_head_dim=v_dim,
            kdim=kdim,
            vdim=vdim,
            out_dim=out_dim,
            qkv_bias=any(f"{module}.bias" in tensors for module in ("qkv", *_SEPARATE.values())),
            out_bias="proj.bias" in tensors,
        )
