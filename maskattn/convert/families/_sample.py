"""The models that a family may be of, by a configuration, and by sizes of no model where it leaves any open."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from maskattn.convert.families._names import ALIASES
from maskattn.models import describe
from maskattn.models.model import WholeModel

#: Sizes of no model.
SAMPLE: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim"), 5040),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 10),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "decoder_num_attention_heads"), 10),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 5417),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 5099),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 5099),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 5333),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 64),
    **{"vocab_size": 5003, "num_experts_per_tok": 1, "n_shared_experts": 1, "attention_window": 512, "d_kv": 504},
    **{"decoder_hidden_size": 3960, "decoder_intermediate_size": 5437, "num_mel_bins": 80, "projection_dim": 5021},
    **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
    **{"num_key_value_heads": 1, "layer_types": ["full_attention"] * 200, "attention_layers": ["global"] * 200},
    **{"pad_token_id": 1, "eos_token_id": 2, "mask_token_id": 3, "depths": [2, 2], "window_size": 7},
    **{"image_size": 224, "patch_size": 4, "rope_theta": 1e4, "local_radius": 127},
}
_LISTED: Mapping[str, Mapping[str, Any]] = dict.fromkeys(("swin", "swinv2"), {"num_heads": [10, 20]})
#: What a configuration may choose; tried both ways where it does not say it.
_OPTIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "electra": ({"embedding_size": 5040},),
    "dinov2": ({"use_swiglu_ffn": True},),
    "falcon": ({"new_decoder_architecture": True}, {"parallel_attn": False}, {"bias": True}),
    "llama": ({"mlp_bias": True},),
    "swin": ({"use_absolute_embeddings": True},),
    "t5": ({"feed_forward_proj": "gated-gelu"},),
}
#: What does not change which tensors there are, and may be refused by a row.
_SILENT = ("architectures", "add_cross_attention", "quantization_config")
_WRONG = (ValueError, TypeError, AttributeError, KeyError)
"""What a configuration raises that is no whole one, or does not go with the sample."""


class _Names(Container[str]):
    """Names of a checkpoint: all that a pattern is found in."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def __contains__(self, name: object) -> bool:
        return self._pattern.search(str(name)) is not None


#: All names, and what makes a whole of several models of it, without what may be missing.
_WHOLE = _Names(""), _Names(r"(^|\.)decoder\.(layers|block)\.\d|^logit_scale$|\.post_layernorm\.")
_ENCODER = _Names(r"^(?!decoder\.)"), _Names(r"(?!)")

Both = tuple[WholeModel, WholeModel]
"""A model with all that it may hold, and with what it must hold."""


def _both(base: str, config: Mapping[str, Any]) -> Both:
    """Without tied heads."""
    every, needed = _ENCODER if base == "hf-t5-encoder" else _WHOLE
    return describe(config, every, False), describe(config, needed, False)


def own_type(config: Mapping[str, Any]) -> str:
    """The type of a configuration's row."""
    said = str(config.get("model_type", ""))
    return ALIASES.get(said, said)


def models(base: str, model_type: str, config: Mapping[str, Any]) -> Iterator[Both]:
    """The models of a type that a configuration, which may be another's or empty, admits."""
    said = {name: value for name, value in config.items() if own_type(config) == model_type and name not in _SILENT}
    sample = {**SAMPLE, **_LISTED.get(model_type, {})}
    for option in ({}, *_OPTIONS.get(model_type, ())):
        if option and option.keys() & said.keys():
            continue
        try:
            yield _both(base, {**sample, **said, **option, "model_type": model_type})
        except _WRONG:
            yield _both(base, {**sample, **option, "model_type": model_type})


def sized(base: str, model_type: str, config: Mapping[str, Any], *, whole: bool) -> tuple[Both, WholeModel, bool]:
    """The model that a configuration means, the same with its head, and whether it says all of it, as it may where
    ``whole``; else sizes are the sample's.
    """
    said = {name: value for name, value in config.items() if name not in _SILENT}
    sample = {**SAMPLE, **_LISTED.get(model_type, {})}
    for given in (*([said] if whole else []), {**said, **sample}, sample):
        with contextlib.suppress(*_WRONG):
            own = {**given, "model_type": model_type}
            return _both(base, own), describe(own, None, False), given is said
    raise AssertionError(f"the sample describes no {model_type}")
