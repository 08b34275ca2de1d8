"""Tiny models of the kind of GPT-2."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_GPT2 = {"vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_inner": 44}
_OPT = {"word_embed_proj_dim": 14, "ffn_dim": 44, **{k: v for k, v in SIZES.items() if k != "intermediate_size"}}

GPT: dict[str, Tiny] = {
    "gpt2": Tiny("GPT2LMHeadModel", _GPT2),
    "gpt_bigcode": Tiny("GPTBigCodeForCausalLM", _GPT2),
    "gpt_bigcode+heads": Tiny("GPTBigCodeForCausalLM", {**_GPT2, "multi_query": False}),
    "gpt_neo": Tiny(
        "GPTNeoForCausalLM",
        {
            "vocab_size": 97,
            "max_position_embeddings": 64,
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 6,
            "intermediate_size": 44,
            "window_size": 4,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gptj": Tiny("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}),
    "gpt_neox": Tiny("GPTNeoXForCausalLM", {**SIZES, "rotary_pct": 0.5}),
    "gpt_neox+sequential": Tiny("GPTNeoXForCausalLM", {**SIZES, "rotary_pct": 1.0, "use_parallel_residual": False}),
    "opt": Tiny("OPTForCausalLM", _OPT),
    "opt+post": Tiny("OPTForCausalLM", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 48}),
    "bloom": Tiny("BloomForCausalLM", {"vocab_size": 97, "hidden_size": 48, "n_layer": 2, "n_head": 6}),
    "mpt": Tiny(
        "MptForCausalLM",
        {
            "vocab_size": 97,
            "d_model": 48,
            "n_layers": 2,
            "n_heads": 6,
            "max_seq_len": 64,
            "attn_config": {"clip_qkv": 1.5},
        },
    ),
    "falcon": Tiny("FalconForCausalLM", SIZES),
    "falcon+groups": Tiny("FalconForCausalLM", {**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True}),
    # eager counts ALiBi's bias twice
    "falcon+alibi": Tiny(
        "FalconForCausalLM",
        {**SIZES, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        attention="sdpa",
    ),
}
