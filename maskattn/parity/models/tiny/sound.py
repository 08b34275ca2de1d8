"""Tiny models of sound."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import Tiny

_WAVE = {
    "vocab_size": 31,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 44,
    "conv_dim": (14, 18, 22),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
_STABLE = {**_WAVE, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}

SOUND: dict[str, Tiny] = {
    "wav2vec2": Tiny("Wav2Vec2ForCTC", _WAVE, "sound", length=300),
    "wav2vec2+stable": Tiny("Wav2Vec2ForCTC", {**_STABLE, "num_conv_pos_embeddings": 7}, "sound", length=300),
    "hubert": Tiny("HubertForCTC", {**_WAVE, "feat_proj_layer_norm": False}, "sound", length=300),
    "hubert+stable": Tiny("HubertModel", {**_STABLE, "mask_time_prob": 0.0}, "sound", length=300),
}
