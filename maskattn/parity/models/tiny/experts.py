"""Tiny mixtures of experts."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_QWEN = {**_GROUPED, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
_LATENT = {
    **_GROUPED,
    "num_key_value_heads": 6,
    "num_hidden_layers": 3,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 4,
    "v_head_dim": 7,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_group": 4,
    "topk_group": 2,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
    "original_max_position_embeddings": 16,
}

EXPERTS: dict[str, Tiny] = {
    "mixtral": Tiny("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 5}),
    "mixtral+sliding": Tiny("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 5, "sliding_window": 5}),
    "qwen2_moe": Tiny("Qwen2MoeForCausalLM", {**_QWEN, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]}),
    "qwen2_moe+sliding": Tiny(
        "Qwen2MoeForCausalLM",
        {
            **_QWEN,
            "shared_expert_intermediate_size": 24,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "qwen3_moe": Tiny("Qwen3MoeForCausalLM", {**_QWEN, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3_moe+sliding": Tiny(
        "Qwen3MoeForCausalLM", {**_QWEN, "head_dim": 16, "use_sliding_window": True, "sliding_window": 5}
    ),
    "olmoe": Tiny("OlmoeForCausalLM", {**_GROUPED, "clip_qkv": 0.8, "num_experts": 7, "num_experts_per_tok": 2}),
    "gpt_oss": Tiny(
        "GptOssForCausalLM",
        {
            **_GROUPED,
            "head_dim": 8,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "swiglu_limit": 0.5,
        },
    ),
    "deepseek_v2": Tiny(
        "DeepseekV2ForCausalLM", {**_LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0}
    ),
    "deepseek_v2+lite": Tiny(
        "DeepseekV2ForCausalLM", {**_LATENT, "q_lora_rank": None, "attention_bias": True, "mlp_bias": True}
    ),
    "deepseek_v3": Tiny("DeepseekV3ForCausalLM", {**_LATENT, "rope_parameters": _YARN}),
    "deepseek_v3+half": Tiny(
        "DeepseekV3ForCausalLM", {**_LATENT, "rope_interleave": False, "norm_topk_prob": False, "attention_bias": True}
    ),
}
