"""Rows of decoders."""

from __future__ import annotations

import math

from maskattn._hf_config import Reading
from maskattn.layer.from_hf._specs import Key, Made, Merged, Named, Root, Rope, Row, When
from maskattn.layer.norm import Norm
from maskattn.layer.parts import Clip, Temperature
from maskattn.layer.position_bias import Slopes

_DROPOUT = Key("attention_dropout", "attn_pdrop", default=0.0)

#: Llama and its many relatives.
LLAMA: Row = {
    "embed_dim": Key("hidden_size"),
    "num_heads": Key("num_attention_heads"),
    "num_kv_heads": Key("num_key_value_heads", default=None),
    "head_dim": Key("head_dim", default=None),
    "qkv_bias": Key("attention_bias", default=False),
    "out_bias": Key("attention_bias", default=False),
    "rotary": Rope(),
    "dropout_rate": _DROPOUT,
}
#: Where transformers' own default is a number, which files may leave out, the key must be there.
_KV = Key("num_key_value_heads")
_BARE: Row = {**LLAMA, "qkv_bias": False, "out_bias": False}
_QK_RMS = Made(Norm, eps=Key("rms_norm_eps", default=1e-6))
_FLAT_RMS = Made(Norm, eps=Key("rms_norm_eps", default=1e-5), over="all", scale="per_head")
_HEADS_LAYER = Made(Norm, kind="layer", eps=Key("layer_norm_eps", default=1e-5), scale="per_head")
_CLIP = When(Key("clip_qkv", default=None), Made(Clip, limit=Key("clip_qkv", default=1.0)))
_GEMMA: Row = {
    **LLAMA,
    "num_kv_heads": _KV,
    "head_dim": Key("head_dim", default=256),
    "rotary": Rope(head_dim=Key("head_dim", default=256)),
}
_GEMMA2: Row = {**_GEMMA, "scale": Root(Key("query_pre_attn_scalar", default=256))}

_GLM: Row = {
    **LLAMA,
    "num_kv_heads": _KV,
    "head_dim": Key("head_dim", default=128),
    "qkv_bias": Key("attention_bias", default=True),
    "out_bias": False,
    "rotary": Rope(pairs="interleaved", fraction=0.5, head_dim=Key("head_dim", default=128)),
}

#: GPT-2 and its relatives.
GPT2: Row = {
    "embed_dim": Key("n_embd", "hidden_size"),
    "num_heads": Key("n_head", "num_attention_heads"),
    "dropout_rate": Key("attn_pdrop", "attention_dropout", default=0.1),
}


def _by_layer(reading: Reading) -> float | None:
    """GPT-2's scale: 1 / sqrt(D), or not; divided by the number of the layer, from 1, or not."""
    width = reading.get("n_embd", "hidden_size") // reading.get("n_head", "num_attention_heads")
    scale = float(width) ** -0.5 if reading.get("scale_attn_weights", default=True) else 1.0
    return scale / (reading.layer + 1) if reading.get("scale_attn_by_inverse_layer_idx", default=False) else scale


def _softcap(reading: Reading) -> float | None:
    """Gemma 2's; None is none."""
    return reading.get("attn_logit_softcapping", default=None) if reading.has("attn_logit_softcapping") else 50.0


def _local(reading: Reading) -> int:
    """Falcon's key/value heads."""
    heads = int(reading.get("num_attention_heads", "n_head"))
    if reading.get("new_decoder_architecture", default=False):
        return int(reading.get("num_kv_heads", "n_head_kv", default=heads))
    return 1 if reading.get("multi_query", default=True) else heads


def _falcon_slopes(reading: Reading) -> Slopes | None:
    """Falcon adds its bias before the logits are scaled."""
    if not reading.get("alibi", default=False):
        return None
    heads = int(reading.get("num_attention_heads", "n_head"))
    width = reading.get("hidden_size") // heads
    return Slopes(tuple(slope * width**-0.5 for slope in published(heads)))


def published(heads: int) -> list[float]:
    """ALiBi's slopes: Press et al. 2022, and the order of their code where heads are no power of two."""
    whole = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * n / whole) for n in range(1, whole + 1)]
    between = [2.0 ** (-4.0 * n / whole) for n in range(1, 2 * whole, 2)]
    return first + between[: heads - whole]


def _with_rope(reading: Reading) -> bool:
    """Whether a layer of Llama 4 or SmolLM 3 has a rotary embedding: `no_rope_layers` is 1 where it has; every fourth
    has none, where that is not said."""
    every = int(reading.get("no_rope_layer_interval", default=4))
    if reading.get("no_rope_layers", default=()):
        return bool(reading.each("no_rope_layers"))
    return (reading.layer + 1) % every != 0


def _mpt(name: str, default: object = None) -> Merged:
    """A key of MPT's `attn_config`."""

    def read(reading: Reading) -> object:
        inner = reading.get("attn_config", default=None)
        found = None if inner is None else Reading(inner, reading.layer, reading.where).get(name, default=None)
        return default if found is None else found

    return Merged(read)


_TURNED = Key("qk_rope_head_dim")
_LATENT_ROPE = Rope(pairs="interleaved", width=_TURNED, head_dim=_TURNED)


def _latent_width(reading: Reading) -> int:
    return int(reading.get("qk_nope_head_dim") + reading.get("qk_rope_head_dim"))


def _latent_scale(reading: Reading) -> float:
    """YaRN's factor of cosine and sine is for a part of a head: for the rest, its square is in the scale."""
    found = reading.rope()
    factor, grown = float(found.get("factor", 1.0)), found.get("mscale_all_dim")
    grown = None if found.get("rope_type", "default") == "default" else grown
    more = 0.1 * grown * math.log(factor) + 1 if grown and factor > 1 else 1.0
    return float(_latent_width(reading) ** -0.5 * more**2)


#: DeepSeek's, behind what makes keys and values of a latent: of each head the numbers that are turned come first.
_LATENT: Row = {
    "embed_dim": Key("hidden_size"),
    "num_heads": Key("num_attention_heads"),
    "head_dim": Merged(_latent_width),
    "v_head_dim": Key("v_head_dim"),
    "qkv_bias": False,
    "out_bias": Key("attention_bias", default=False),
    "scale": Merged(_latent_scale),
    "rotary": _LATENT_ROPE,
    "dropout_rate": _DROPOUT,
}


DECODERS: dict[str, Row] = {
    "llama": LLAMA,
    "mistral": {**_BARE, "num_kv_heads": _KV},
    "ministral": {**_BARE, "num_kv_heads": _KV},
    "mixtral": {**_BARE, "num_kv_heads": _KV, "rotary": Rope(theta=1000000.0)},
    "qwen2": {**LLAMA, "num_kv_heads": _KV, "qkv_bias": True, "out_bias": False},
    "qwen2_moe": {**LLAMA, "num_kv_heads": _KV, "qkv_bias": Key("qkv_bias", default=True), "out_bias": False},
    "qwen3": {**LLAMA, "num_kv_heads": _KV, "head_dim": Key("head_dim", default=128), "qk_norm": _QK_RMS},
    "qwen3_moe": {**LLAMA, "num_kv_heads": _KV, "qk_norm": _QK_RMS},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA2, "softcap": Merged(_softcap)},
    "gemma3_text": {
        **_GEMMA2,
        "qk_norm": Made(Norm, eps=Key("rms_norm_eps", default=1e-6), plus_one=True),
        "rotary": Rope(
            theta=1000000.0,
            head_dim=Key("head_dim", default=256),
            local=Key("rope_local_base_freq", default=10000.0),
        ),
    },
    "phi": {
        **LLAMA,
        "qkv_bias": True,
        "out_bias": True,
        "rotary": Rope(fraction=0.5),
        "qk_norm": When(
            Key("qk_layernorm", default=False),
            Made(Norm, kind="layer", eps=Key("layer_norm_eps", default=1e-5), bias=True),
        ),
    },
    "phi3": {**_BARE, "rotary": Rope(partial=True)},
    "cohere": {
        **LLAMA,
        "rotary": Rope(pairs="interleaved", theta=500000.0),
        "qk_norm": When(Key("use_qk_norm", default=False), _HEADS_LAYER),
    },
    "cohere2": {**LLAMA, "rotary": When(Named("sliding_attention"), Rope(pairs="interleaved"))},
    "olmo": {**LLAMA, "clip": _CLIP},
    "olmo2": {**LLAMA, "qk_norm": _FLAT_RMS},
    "olmo3": {**LLAMA, "qk_norm": _FLAT_RMS, "rotary": Rope(theta=500000.0, local=Key("rope_theta", default=500000.0))},
    "olmoe": {**LLAMA, "qk_norm": _FLAT_RMS, "clip": _CLIP},
    "starcoder2": {
        **LLAMA,
        "num_kv_heads": _KV,
        "qkv_bias": Key("use_bias", default=True),
        "out_bias": Key("use_bias", default=True),
    },
    "granite": {**LLAMA, "scale": Key("attention_multiplier", default=1.0)},
    "granitemoe": {**LLAMA, "scale": Key("attention_multiplier", default=1.0)},
    "stablelm": {
        **_BARE,
        "num_kv_heads": _KV,
        "qkv_bias": Key("use_qkv_bias", default=False),
        "rotary": Rope(fraction=0.25),
        "qk_norm": When(Key("qk_layernorm", default=False), _HEADS_LAYER),
    },
    "smollm3": {**LLAMA, "num_kv_heads": _KV, "rotary": When(Merged(_with_rope), Rope(theta=2000000.0))},
    "helium": {
        **LLAMA,
        "num_kv_heads": _KV,
        "head_dim": Key("head_dim", default=128),
        "out_bias": False,
        "rotary": Rope(pairs="interleaved", theta=100000.0),
    },
    "glm": _GLM,
    "glm4": _GLM,
    "nemotron": {**LLAMA, "rotary": Rope(fraction=0.5)},
    "gpt_oss": {
        **LLAMA,
        "num_kv_heads": _KV,
        "head_dim": Key("head_dim", default=64),
        "rotary": Rope(theta=Key("rope_theta"), head_dim=Key("head_dim", default=64)),
        "qkv_bias": Key("attention_bias", default=True),
        "out_bias": Key("attention_bias", default=True),
        "sinks": True,
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": {
        **_LATENT,
        "rotary": When(Key("rope_interleave", default=True), _LATENT_ROPE, Rope(width=_TURNED, head_dim=_TURNED)),
    },
    "llama4_text": {
        **LLAMA,
        "num_kv_heads": _KV,
        "head_dim": Key("head_dim", default=128),
        "rotary": When(Merged(_with_rope), Rope(pairs="interleaved", theta=500000.0)),
        "qk_norm": When(
            Merged(_with_rope),
            When(
                Key("use_qk_norm", default=True),
                Made(Norm, eps=Key("rms_norm_eps", default=1e-5), scale="none", after_rotary=True),
            ),
        ),
        "temperature": When(
            Merged(_with_rope),
            None,
            When(
                Key("attn_temperature_tuning", default=True),
                Made(Temperature, scale=Key("attn_scale", default=0.1), floor=Key("floor_scale", default=8192.0)),
            ),
        ),
    },
    "gpt2": {**GPT2, "scale": Merged(_by_layer)},
    "gpt_bigcode": {
        **GPT2,
        "scale": When(Key("scale_attn_weights", default=True), None, 1.0),
        "num_kv_heads": When(Key("multi_query", default=True), 1),
    },
    "gptj": {
        **GPT2,
        "qkv_bias": False,
        "out_bias": False,
        "rotary": Rope(pairs="interleaved", width=Key("rotary_dim", default=64)),
        "dropout_rate": _DROPOUT,
    },
    "codegen": {
        **GPT2,
        "qkv_bias": False,
        "out_bias": False,
        "rotary": Rope(pairs="interleaved", width=Key("rotary_dim", default=64)),
        "dropout_rate": _DROPOUT,
    },
    "gpt_neo": {
        "embed_dim": Key("hidden_size"),
        "num_heads": Key("num_heads", "num_attention_heads"),
        "qkv_bias": False,
        "scale": 1.0,
        "dropout_rate": _DROPOUT,
    },
    "gpt_neox": {
        "embed_dim": Key("hidden_size"),
        "num_heads": Key("num_attention_heads"),
        "qkv_bias": Key("attention_bias", default=True),
        "out_bias": Key("attention_bias", default=True),
        "rotary": Rope(fraction=0.25),
        "dropout_rate": _DROPOUT,
    },
    "opt": {
        "embed_dim": Key("hidden_size"),
        "num_heads": Key("num_attention_heads"),
        "qkv_bias": Key("enable_bias", default=True),
        "out_bias": Key("enable_bias", default=True),
        "dropout_rate": _DROPOUT,
    },
    "bloom": {
        "embed_dim": Key("hidden_size", "n_embed"),
        "num_heads": Key("n_head", "num_attention_heads"),
        "position_bias": Slopes(),
        "dropout_rate": _DROPOUT,
    },
    "mpt": {
        "embed_dim": Key("d_model", "hidden_size"),
        "num_heads": Key("n_heads", "num_attention_heads"),
        "qkv_bias": False,
        "out_bias": False,
        "scale": _mpt("softmax_scale"),
        "clip": When(_mpt("clip_qkv"), Made(Clip, limit=_mpt("clip_qkv"))),
        "position_bias": Slopes(),
        "dropout_rate": _mpt("attn_pdrop", 0.0),
    },
    "falcon": {
        "embed_dim": Key("hidden_size"),
        "num_heads": Key("num_attention_heads", "n_head"),
        "num_kv_heads": Merged(_local),
        "qkv_bias": Key("bias", default=False),
        "out_bias": Key("bias", default=False),
        "rotary": When(Key("alibi", default=False), None, Rope()),
        "position_bias": Merged(_falcon_slopes),
        "dropout_rate": _DROPOUT,
    },
}
