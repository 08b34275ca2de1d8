"""Mixtures of experts, and DeepSeek's attention to a latent."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When
from maskattn.models.rows.decoders import DECODERS, LLAMA

_QK_NORM = DECODERS["qwen3"]["held"]


def _paths(where: str) -> tuple[str, str, str]:
    return (f"{where}.gate_proj", f"{where}.up_proj", f"{where}.down_proj")


#: What nearly all say of their experts.
_EXPERTS: Row = {
    "count": Key("num_local_experts", "num_experts", "n_routed_experts"),
    "width": Key("moe_intermediate_size"),
    "picked": Key("num_experts_per_tok"),
    "router": "mlp.gate",
    "up": "mlp.experts.gate_up_proj",
    "down": "mlp.experts.down_proj",
}
_PLAIN: Row = {**LLAMA, "mlp_bias": False}


def _is_sparse(reading: Reading) -> bool:
    """Whether a layer of Qwen has experts."""
    every = int(reading.get("decoder_sparse_step", default=1))
    dense = reading.get("mlp_only_layers", default=())
    some = reading.get("num_experts", "num_local_experts") > 0
    return some and reading.layer not in dense and (reading.layer + 1) % every == 0


def _qwen(**more: object) -> Row:
    experts = {**_EXPERTS, "renormalized": Key("norm_topk_prob", default=False), **more}
    return {**_PLAIN, "experts": When(Merged(_is_sparse), experts)}


def _limited(key: str) -> Merged:
    """How many groups of experts DeepSeek-V2 has, or keeps: one, where the choice is not limited by them.

    Raises:
        ValueError: it chooses in a way that is not known.
    """

    def read(reading: Reading) -> int:
        method = reading.get("topk_method", default="greedy")
        if method not in ("greedy", "group_limited_greedy"):
            raise ValueError(f"{reading.where}: topk_method must be greedy or group_limited_greedy, got {method!r}")
        return 1 if method == "greedy" else int(reading.get(key))

    return Merged(read)


def _rank(reading: Reading) -> int | None:
    """The width between the layers of DeepSeek's queries; None is one layer."""
    return reading.get("q_lora_rank", default=None) if reading.has("q_lora_rank") else 1536


_DEEPSEEK: Row = {
    **_PLAIN,
    "latent": {
        "query": When(
            Merged(_rank),
            ("self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"),
            ("self_attn.q_proj",),
        ),
        "rank": Merged(_rank),
        "both": "self_attn.kv_a_proj_with_mqa",
        "width": Key("kv_lora_rank"),
        "norm": "self_attn.kv_a_layernorm",
        "grown": "self_attn.kv_b_proj",
        "out": "self_attn.o_proj",
    },
}


def _deepseek(first: int, **more: object) -> Row:
    """From some layer on with experts, and one or more that read all tokens."""
    shared = Merged(lambda reading: reading.get("moe_intermediate_size") * reading.get("n_shared_experts"))
    experts = {
        **_EXPERTS,
        "count": Key("n_routed_experts", "num_local_experts"),
        "wide": True,
        "groups": Key("n_group", default=1),
        "shared": _paths("mlp.shared_experts"),
        "shared_width": shared,
        **more,
    }
    dense = Merged(lambda reading: reading.layer < reading.get("first_k_dense_replace", default=first))
    return {**_DEEPSEEK, "experts": When(dense, None, experts)}


EXPERTS: dict[str, Row] = {
    "mixtral": {
        **_PLAIN,
        "eps": Key("rms_norm_eps", default=1e-5),
        "experts": {
            **_EXPERTS,
            "width": Key("intermediate_size"),
            "renormalized": True,
            "jitter": Key("router_jitter_noise", default=0.0),
        },
    },
    "qwen2_moe": _qwen(
        shared=_paths("mlp.shared_expert"),
        shared_width=Key("shared_expert_intermediate_size"),
        weighed="mlp.shared_expert_gate",
    ),
    "qwen3_moe": {**_qwen(), "held": _QK_NORM},
    "olmoe": {
        **_PLAIN,
        "eps": Key("rms_norm_eps", default=1e-5),
        "held": _QK_NORM,
        "experts": {
            **_EXPERTS,
            "width": Key("intermediate_size"),
            "renormalized": Key("norm_topk_prob", default=False),
        },
    },
    "gpt_oss": {
        **_PLAIN,
        "eps": Key("rms_norm_eps", default=1e-5),
        "held": {"sinks": "self_attn.sinks"},
        "experts": {
            **_EXPERTS,
            "width": Key("intermediate_size"),
            "router": "mlp.router",
            "router_bias": True,
            "scores": "picked",
            "turned": True,
            "up_bias": "mlp.experts.gate_up_proj_bias",
            "down_bias": "mlp.experts.down_proj_bias",
            "limit": Key("swiglu_limit", default=7.0),
            "sharpness": Key("swiglu_alpha", default=1.702),
        },
    },
    "deepseek_v2": {
        **_deepseek(
            0,
            groups=_limited("n_group"),
            kept=_limited("topk_group"),
            scale=Key("routed_scaling_factor", default=1.0),
            shared_bias=Key("mlp_bias", default=False),
        ),
        "mlp_bias": Key("mlp_bias", default=False),
    },
    "deepseek_v3": _deepseek(
        3,
        groups=Key("n_group", default=8),
        scores="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        kept=Key("topk_group", default=4),
        renormalized=Key("norm_topk_prob", default=True),
        scale=Key("routed_scaling_factor", default=2.5),
    ),
}
