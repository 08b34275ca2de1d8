"""Tiny decoders of the kind of Llama with other settings: rotary scalings, windows and none, biases, tied tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LISTS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.5, 2.0, 3.0, 4.0]}


def _llama(kind: str, more: Mapping[str, Any], most: int = 64) -> Tiny:
    rope = {"rope_type": kind, "rope_theta": 100.0, **more}
    return Tiny("LlamaForCausalLM", {**_GROUPED, "max_position_embeddings": most, "rope_parameters": rope})


VARIANTS: dict[str, Tiny] = {
    "llama+linear": _llama("linear", {"factor": 4.0}),
    "llama+dynamic": _llama("dynamic", {"factor": 4.0}, most=10),
    "llama+yarn": _llama("yarn", {"factor": 4.0, "original_max_position_embeddings": 16}),
    "llama+longrope-short": _llama("longrope", {"original_max_position_embeddings": 32, **_LISTS}),
    "llama+longrope-long": _llama("longrope", {"original_max_position_embeddings": 10, **_LISTS}),
    "llama+bias": Tiny(
        "LlamaForCausalLM",
        {**_GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 14, "tie_word_embeddings": True},
    ),
    "llama+base": Tiny("LlamaModel", _GROUPED),
    "mistral+full": Tiny("MistralForCausalLM", {**_GROUPED, "sliding_window": None}),
    "qwen2+full": Tiny("Qwen2ForCausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3+sliding": Tiny(
        "Qwen3ForCausalLM",
        {**_GROUPED, "head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "gemma2+uncapped": Tiny(
        "Gemma2ForCausalLM",
        {**_GROUPED, "head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "phi+plain": Tiny("PhiForCausalLM", {**_GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "phi3+longrope": Tiny(
        "Phi3ForCausalLM",
        {
            **_GROUPED,
            "original_max_position_embeddings": 10,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, **_LISTS},
        },
    ),
    "cohere+plain": Tiny("CohereForCausalLM", {**_GROUPED, "attention_bias": True}),
    "olmo+plain": Tiny("OlmoForCausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "starcoder2+plain": Tiny("Starcoder2ForCausalLM", {**_GROUPED, "use_bias": False, "sliding_window": None}),
    "smollm3+sliding": Tiny(
        "SmolLM3ForCausalLM",
        {**_GROUPED, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    ),
}
