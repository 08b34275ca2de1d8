"""Llama and its many relatives: what differs from Llama."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When
from maskattn.models.build_tasks import LAST, RATE

#: Names that nearly all have.
_NAMES: Row = {
    "prefix": "model.",
    "table": "embed_tokens",
    "layers": "layers.{}",
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "norms": {"attention_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
    "final": "norm",
    "head": "lm_head",
    "mlp_width": Key("intermediate_size"),
    "mlp_bias": Key("mlp_bias", default=False),
    "activation": Key("hidden_act", default="silu"),
    "tied": Key("tie_word_embeddings", default=False),
    "sequence_head": LAST,
    "token_head": {"layers": ("score",), "rate": RATE},
}
_TIED = Key("tie_word_embeddings", default=True)

LLAMA: Row = {
    **_NAMES,
    "norm": "rms",
    "eps": Key("rms_norm_eps", default=1e-6),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}
_UNBIASED: Row = {**LLAMA, "mlp_bias": False}
_QK_NORM = {"query_norm.scale": "self_attn.q_norm.weight", "key_norm.scale": "self_attn.k_norm.weight"}
_QK_LAYERNORM = {
    "query_norm.scale": "self_attn.q_layernorm.weight",
    "query_norm.bias": "self_attn.q_layernorm.bias",
    "key_norm.scale": "self_attn.k_layernorm.weight",
    "key_norm.bias": "self_attn.k_layernorm.bias",
}
#: A norm before and behind each branch.
_SANDWICH = {
    "attention_in": "input_layernorm",
    "attention_out": "post_attention_layernorm",
    "mlp_in": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}
_ONE_NORM = {"attention_in": "input_layernorm"}


def _rms(default: float) -> Key:
    return Key("rms_norm_eps", default=default)


_LAYER: Row = {**_NAMES, "norm": "layer", "eps": Key("layer_norm_eps", default=1e-5)}


def _gemma_activation(reading: Reading) -> str:
    """A file's "gelu" has always been read as its approximation by tanh."""
    found = str(reading.get("hidden_act", default="gelu_tanh"))
    return "gelu_tanh" if found == "gelu" else found


_GEMMA: Row = {
    **_UNBIASED,
    "plus_one": True,
    "table_scale": Merged(lambda reading: reading.get("hidden_size") ** 0.5),
    "activation": Merged(_gemma_activation),
    "refused": {"use_bidirectional_attention": "transformers' own attentions differ in what it means"},
    "tied": _TIED,
}
_GEMMA2: Row = {
    **_GEMMA,
    "norms": _SANDWICH,
    "activation": Key("hidden_activation", default="gelu_tanh"),
    "softcap": Key("final_logit_softcapping", default=None),
}
_COHERE: Row = {
    **_LAYER,
    "norm_bias": False,
    "norms": _ONE_NORM,
    "parallel": True,
    "mlp": LLAMA["mlp"],
    "mlp_bias": False,
    "logit_scale": Key("logit_scale", default=0.0625),
    "tied": _TIED,
}
_OUT = {"attention_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}


def _gemma2_cap(reading: Reading) -> float | None:
    """None is none; where nothing is said, 30."""
    return reading.get("final_logit_softcapping", default=None) if reading.has("final_logit_softcapping") else 30.0


DECODERS: dict[str, Row] = {
    "llama": LLAMA,
    "mistral": _UNBIASED,
    "ministral": _UNBIASED,
    "qwen2": _UNBIASED,
    "qwen3": {**_UNBIASED, "held": _QK_NORM},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA2, "softcap": Merged(_gemma2_cap)},
    "gemma3_text": {**_GEMMA2, "held": _QK_NORM, "refused": {}},
    "phi": {
        **_LAYER,
        "norms": _ONE_NORM,
        "parallel": True,
        "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        "held": _QK_LAYERNORM,
        "mlp": ("mlp.fc1", "mlp.fc2"),
        "mlp_bias": True,
        "activation": Key("hidden_act", default="gelu_new"),
        "dropout": Key("resid_pdrop", default=0.0),
        "table_dropout": Key("embd_pdrop", default=0.0),
        "final": "final_layernorm",
        "head_bias": True,
    },
    "phi3": {
        **_UNBIASED,
        "eps": _rms(1e-5),
        "attention": ("self_attn.qkv_proj", "self_attn.o_proj"),
        "mlp": ("mlp.gate_up_proj", "mlp.down_proj"),
        "halves": True,
        "dropout": Key("resid_pdrop", default=0.0),
        "table_dropout": 0.0,
    },
    "cohere": {**_COHERE, "held": _QK_NORM},
    "cohere2": _COHERE,
    "olmo": {**_LAYER, "eps": 1e-5, "norm_scale": False, "norm_bias": False, "mlp": LLAMA["mlp"], "mlp_bias": False},
    "olmo2": {**_UNBIASED, "eps": _rms(1e-5), "norms": _OUT, "held": _QK_NORM},
    "starcoder2": {
        **_LAYER,
        "eps": Key("norm_epsilon", default=1e-5),
        "mlp": ("mlp.c_fc", "mlp.c_proj"),
        "mlp_bias": Key("use_bias", default=True),
        "activation": Key("hidden_act", default="gelu_pytorch_tanh"),
        "dropout": Key("residual_dropout", default=0.0),
        "table_dropout": Key("embedding_dropout", default=0.0),
        "tied": _TIED,
    },
    "granite": {
        **LLAMA,
        "table_scale": Key("embedding_multiplier", default=1.0),
        "residual": Key("residual_multiplier", default=1.0),
        "logit_scale": Merged(lambda reading: 1 / reading.get("logits_scaling", default=1.0)),
    },
    "stablelm": {
        **_LAYER,
        "norms": When(Key("use_parallel_residual", default=False), _ONE_NORM, _NAMES["norms"]),
        "parallel": Key("use_parallel_residual", default=False),
        "held": {
            "query_norm.scale": "self_attn.q_layernorm.norms.{}.weight",
            "key_norm.scale": "self_attn.k_layernorm.norms.{}.weight",
        },
        "mlp": LLAMA["mlp"],
        "mlp_bias": False,
        "dropout": (0.0, Key("hidden_dropout", default=0.0)),
        "table_dropout": 0.0,
    },
    "smollm3": {**LLAMA, "tied": _TIED},
    "helium": {**LLAMA, "eps": _rms(1e-8)},
    "glm4": {
        **_UNBIASED,
        "eps": _rms(1.5625e-7),
        "norms": {
            "attention_in": "input_layernorm",
            "attention_out": "post_self_attn_layernorm",
            "mlp_in": "post_attention_layernorm",
            "mlp_out": "post_mlp_layernorm",
        },
        "mlp": ("mlp.gate_up_proj", "mlp.down_proj"),
        "halves": True,
    },
    "nemotron": {
        **_LAYER,
        "eps": Key("norm_eps", default=1e-5),
        "plus_one": True,
        "mlp": ("mlp.up_proj", "mlp.down_proj"),
        "activation": Key("hidden_act", default="relu2"),
    },
}
