"""Tiny decoders of the kind of Llama."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

DECODERS: dict[str, Tiny] = {
    "llama": Tiny("LlamaForCausalLM", {**_GROUPED, "rope_parameters": _LLAMA3}),
    "mistral": Tiny("MistralForCausalLM", {**_GROUPED, "sliding_window": 5, "head_dim": 14}),
    "ministral": Tiny(
        "MinistralForCausalLM",
        {**_GROUPED, "sliding_window": 5, "head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen2": Tiny(
        "Qwen2ForCausalLM", {**_GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    ),
    "qwen3": Tiny("Qwen3ForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gemma": Tiny("GemmaForCausalLM", {**_GROUPED, "head_dim": 16}),
    "gemma2": Tiny(
        "Gemma2ForCausalLM",
        {
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3_text": Tiny(
        "Gemma3ForCausalLM",
        {
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 1.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "phi": Tiny("PhiForCausalLM", {**_GROUPED, "qk_layernorm": True}),
    "phi3": Tiny("Phi3ForCausalLM", {**_GROUPED, "sliding_window": 6, "partial_rotary_factor": 0.5}),
    "cohere": Tiny("CohereForCausalLM", {**_GROUPED, "use_qk_norm": True}),
    "cohere2": Tiny("Cohere2ForCausalLM", {**_GROUPED, "sliding_window": 5, "sliding_window_pattern": 2}),
    "olmo": Tiny("OlmoForCausalLM", {**_GROUPED, "clip_qkv": 0.5}),
    "olmo2": Tiny("Olmo2ForCausalLM", _GROUPED),
    "starcoder2": Tiny("Starcoder2ForCausalLM", {**_GROUPED, "sliding_window": 5}),
    "granite": Tiny(
        "GraniteForCausalLM",
        {
            **_GROUPED,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
        },
    ),
    "stablelm": Tiny(
        "StableLmForCausalLM",
        {
            **_GROUPED,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            "use_parallel_residual": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    "stablelm+sequential": Tiny("StableLmForCausalLM", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "smollm3": Tiny("SmolLM3ForCausalLM", {**_GROUPED, "no_rope_layer_interval": 2}),
    "helium": Tiny("HeliumForCausalLM", {**_GROUPED, "head_dim": 8}),
    "glm4": Tiny("Glm4ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "nemotron": Tiny("NemotronForCausalLM", {**_GROUPED, "partial_rotary_factor": 0.5}),
}
