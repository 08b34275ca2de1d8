"""What modules that are plain multi-head attention, with nothing to set but sizes, cannot express."""

from __future__ import annotations

import math

from maskattn.config import AttentionConfig


def plain_multihead(config: AttentionConfig) -> list[str]:
    """Reasons that hold for ``torch.nn.MultiheadAttention`` and for BERT alike."""
    reasons: list[str] = []
    if not config.project:
        reasons.append("project is False, but the module always projects")
    if config.kv_heads != config.num_heads:
        reasons.append(f"num_kv_heads is {config.kv_heads}, but the module has num_heads={config.num_heads} of each")
    if config.qk_head_dim * config.num_heads != config.embed_dim:
        reasons.append(
            f"num_heads * head_dim is {config.num_heads} * {config.qk_head_dim}, "
            f"but the module has embed_dim={config.embed_dim}"
        )
    if config.value_head_dim != config.qk_head_dim:
        reasons.append(
            f"v_head_dim is {config.value_head_dim}, but the module has head_dim={config.qk_head_dim} for both"
        )
    if config.output_dim != config.embed_dim:
        reasons.append(f"out_dim is {config.output_dim}, but the module gives embed_dim={config.embed_dim}")
    plain = 1.0 / math.sqrt(config.qk_head_dim)
    if config.softmax_scale != plain:
        reasons.append(f"scale is {config.scale}, but the module always takes 1 / sqrt(head_dim) = {plain}")
    return reasons
