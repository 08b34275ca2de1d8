"""Hugging Face BERT: ``self.query``, ``self.key``, ``self.value`` and ``output.dense``, each [E, E].

The prefix of a layer is that of its ``BertAttention``, for example ``encoder.layer.0.attention.``.
``output.LayerNorm``, which follows the residual connection, is not attention and stays outside. RoBERTa and ELECTRA
use the same names.
"""

from __future__ import annotations

from collections.abc import Mapping

from maskattn.config import AttentionConfig
from maskattn.layouts._base import (
    PROJECTIONS,
    Array,
    Layout,
    Shape,
    Tensors,
    divide,
    kernel_from_linear,
    linear_from_kernel,
    linear_from_out,
    linear_shapes,
    need,
    out_from_linear,
)
from maskattn.layouts._limits import plain_multihead

_DISTANCE = "relative position embeddings have no canonical form yet"


class HFBert(Layout):
    """Four square linear layers with biases."""

    name = "hf-bert"
    aliases = ("bert",)
    anchors = ("self.query.weight", "self.key.weight", "self.value.weight")
    # gamma and beta are the names of checkpoints from before 2019.
    outside = tuple(f"output.LayerNorm.{part}" for part in ("weight", "bias", "gamma", "beta"))
    refused = {
        "self.distance_embedding.weight": _DISTANCE,
        "self.relative_position_bias_table": _DISTANCE,
    }

    def unsupported(self, config: AttentionConfig) -> list[str]:
        """What plain multi-head attention cannot express, layers without biases, inputs of different widths."""
        reasons = plain_multihead(config)
        for name, width in (("kdim", config.key_dim), ("vdim", config.value_dim)):
            if width != config.embed_dim:
                reasons.append(f"{name} is {width}, but the module has embed_dim={config.embed_dim}")
        for name in ("qkv_bias", "out_bias"):
            if not getattr(config, name):
                reasons.append(f"{name} is False, but the module always has biases")
        return reasons

    def shapes(self, config: AttentionConfig) -> dict[str, Shape]:
        """Four weights [E, E] and four biases [E]."""
        linear = linear_shapes(config)
        modules = {f"self.{role}": linear[role] for role in PROJECTIONS} | {"output.dense": linear["out"]}
        shapes: dict[str, Shape] = {}
        for module, shape in modules.items():
            shapes[f"{module}.weight"] = shape
            shapes[f"{module}.bias"] = shape[:1]
        return shapes

    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Transposes and gives heads an axis."""
        out: Tensors = {}
        for role in PROJECTIONS:
            out[f"{role}.kernel"] = kernel_from_linear(tensors[f"self.{role}.weight"], config.num_heads)
            out[f"{role}.bias"] = tensors[f"self.{role}.bias"].reshape(config.num_heads, -1)
        out["out.kernel"] = out_from_linear(tensors["output.dense.weight"], config.num_heads)
        out["out.bias"] = tensors["output.dense.bias"]
        return out

    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Folds heads into rows and transposes."""
        out: Tensors = {}
        for role in PROJECTIONS:
            out[f"self.{role}.weight"] = linear_from_kernel(tensors[f"{role}.kernel"])
            out[f"self.{role}.bias"] = tensors[f"{role}.bias"].reshape(-1)
        out["output.dense.weight"] = linear_from_out(tensors["out.kernel"])
        out["output.dense.bias"] = tensors["out.bias"]
        return out

    def infer(self, tensors: Mapping[str, Array], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """Needs ``num_heads``."""
        if num_heads is None:
            raise ValueError(f"num_heads is needed: {self.name} does not store it")
        if num_kv_heads not in (None, num_heads):
            raise ValueError(f"num_kv_heads is {num_kv_heads}, but {self.name} has one head count, {num_heads}")
        embed_dim = need(tensors, "self.query.weight", 2)[1]
        divide(embed_dim, num_heads, "embed_dim over num_heads")
        return AttentionConfig(embed_dim, num_heads)
