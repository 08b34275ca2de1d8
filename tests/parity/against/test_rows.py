"""More rows of `AttentionConfig.from_hf` against the attention of transformers' own models: PyTorch's twin alone."""

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.config import AttentionConfig
from maskattn.masks import Causal, Full, SlidingWindow
from maskattn.parity.against import capture as capturing
from maskattn.parity.against.capture import capture
from maskattn.parity.against.families import Family, Site
from maskattn.parity.layers.oracle import Call, judge
from tests.frameworks import maskattn_torch, optional, torch

optional("transformers")

WORDS = {"vocab_size": 97, "num_hidden_layers": 2, "max_position_embeddings": 64, "intermediate_size": 37}
SQUARE = {**WORDS, "hidden_size": 35, "num_attention_heads": 5}
EVEN = {**WORDS, "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 0}
GROUPED = {**EVEN, "hidden_size": 36, "head_dim": 14}
THETA = {"rope_theta": 50.0, "rope_type": "default"}
SELF = "layers.{}.self_attn."
GPT = {"vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 37}
S2S = {
    "vocab_size": 97,
    "d_model": 70,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 7,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 31,
    "max_position_embeddings": 64,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.5] * 5, "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0]}
TYPES = ["sliding_attention", "full_attention"]
SLIDING = Causal() & SlidingWindow(3, 0)

#: model, configuration, prefix, output projection, mask of each layer (one of the two where they are alike)
ROWS = {
    "llama": (
        "LlamaModel",
        {
            **GROUPED,
            "attention_bias": True,
            "rope_parameters": {**LLAMA3, "rope_theta": 50.0, "original_max_position_embeddings": 16},
        },
        SELF,
        "o_proj",
        [Causal()],
    ),
    "ministral": (
        "MinistralModel",
        {**GROUPED, "sliding_window": 4, "layer_types": TYPES, "rope_parameters": THETA},
        SELF,
        "o_proj",
        [SLIDING, Causal()],
    ),
    "qwen2": ("Qwen2Model", {**EVEN, "rope_parameters": THETA}, SELF, "o_proj", [Causal()]),
    "gemma": ("GemmaModel", {**GROUPED, "rope_parameters": THETA}, SELF, "o_proj", [Causal()]),
    "gemma3_text": (
        "Gemma3TextModel",
        {
            **GROUPED,
            "rms_norm_eps": 0.07,
            "query_pre_attn_scalar": 23,
            "sliding_window": 4,
            "layer_types": TYPES,
            "rope_parameters": {
                "sliding_attention": THETA,
                "full_attention": {"rope_theta": 90.0, "rope_type": "linear", "factor": 3.0},
            },
        },
        SELF,
        "o_proj",
        [SLIDING, Causal()],
    ),
    "phi": (
        "PhiModel",
        {
            **EVEN,
            "qk_layernorm": True,
            "layer_norm_eps": 0.07,
            "rope_parameters": {**THETA, "partial_rotary_factor": 0.4},
        },
        SELF,
        "dense",
        [Causal()],
    ),
    "phi3": (
        "Phi3Model",
        {
            **EVEN,
            "sliding_window": 4,
            "original_max_position_embeddings": 8,
            "rope_parameters": {**LONG, "rope_theta": 50.0},
        },
        SELF,
        "o_proj",
        [SLIDING],
    ),
    "cohere": (
        "CohereModel",
        {**EVEN, "use_qk_norm": True, "layer_norm_eps": 0.07, "rope_parameters": THETA},
        SELF,
        "o_proj",
        [Causal()],
    ),
    "cohere2": (
        "Cohere2Model",
        {**EVEN, "head_dim": 10, "sliding_window": 4, "layer_types": TYPES, "rope_parameters": THETA},
        SELF,
        "o_proj",
        [SLIDING, Causal()],
    ),
    "olmo": ("OlmoModel", {**EVEN, "clip_qkv": 0.6, "rope_parameters": THETA}, SELF, "o_proj", [Causal()]),
    "olmo2": ("Olmo2Model", {**EVEN, "rms_norm_eps": 0.07, "rope_parameters": THETA}, SELF, "o_proj", [Causal()]),
    "olmo3": (
        "Olmo3Model",
        {
            **EVEN,
            "rms_norm_eps": 0.07,
            "sliding_window": 4,
            "layer_types": TYPES,
            "rope_parameters": {"sliding_attention": THETA, "full_attention": {**THETA, "rope_theta": 90.0}},
        },
        SELF,
        "o_proj",
        [SLIDING, Causal()],
    ),
    "starcoder2": (
        "Starcoder2Model",
        {**EVEN, "sliding_window": 4, "rope_parameters": THETA},
        SELF,
        "o_proj",
        [SLIDING],
    ),
    "granite": (
        "GraniteModel",
        {**EVEN, "attention_multiplier": 0.2, "rope_parameters": THETA},
        SELF,
        "o_proj",
        [Causal()],
    ),
    "stablelm": (
        "StableLmModel",
        {
            **EVEN,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            "layer_norm_eps": 0.07,
            "rope_parameters": {**THETA, "partial_rotary_factor": 0.4},
        },
        SELF,
        "o_proj",
        [Causal()],
    ),
    "smollm3": (
        "SmolLM3Model",
        {**EVEN, "no_rope_layer_interval": 2, "rope_parameters": THETA},
        SELF,
        "o_proj",
        [Causal(), Causal()],
    ),
    "helium": ("HeliumModel", {**EVEN, "head_dim": 10, "rope_parameters": THETA}, SELF, "o_proj", [Causal()]),
    "glm4": (
        "Glm4Model",
        {**EVEN, "head_dim": 20, "attention_bias": True, "rope_parameters": {**THETA, "partial_rotary_factor": 0.4}},
        SELF,
        "o_proj",
        [Causal()],
    ),
    "nemotron": (
        "NemotronModel",
        {**EVEN, "rope_parameters": {**THETA, "partial_rotary_factor": 0.4}},
        SELF,
        "o_proj",
        [Causal()],
    ),
    "gpt2": (
        "GPT2Model",
        {**GPT, "scale_attn_by_inverse_layer_idx": True},
        "h.{}.attn.",
        "c_proj",
        [Causal(), Causal()],
    ),
    "gpt_bigcode": ("GPTBigCodeModel", GPT, "h.{}.attn.", "c_proj", [Causal()]),
    "gptj": ("GPTJModel", {**GPT, "rotary_dim": 6}, "h.{}.attn.", "out_proj", [Causal()]),
    "gpt_neo": (
        "GPTNeoModel",
        {
            "vocab_size": 97,
            "max_position_embeddings": 64,
            "hidden_size": 35,
            "num_layers": 2,
            "num_heads": 5,
            "window_size": 4,
            "attention_types": [[["global", "local"], 1]],
        },
        "h.{}.attn.attention.",
        "out_proj",
        [Causal(), SLIDING],
    ),
    "opt": (
        "OPTModel",
        {**{k: v for k, v in SQUARE.items() if k != "intermediate_size"}, "ffn_dim": 37, "word_embed_proj_dim": 35},
        "decoder.layers.{}.self_attn.",
        "out_proj",
        [Causal()],
    ),
    "mpt": (
        "MptModel",
        {
            "vocab_size": 97,
            "d_model": 48,
            "n_layers": 2,
            "n_heads": 6,
            "max_seq_len": 64,
            "attn_config": {"clip_qkv": 0.7, "softmax_scale": 0.3},
        },
        "blocks.{}.attn.",
        "out_proj",
        [Causal()],
    ),
    "distilbert": (
        "DistilBertModel",
        {"vocab_size": 97, "dim": 35, "n_layers": 2, "n_heads": 5, "hidden_dim": 37, "max_position_embeddings": 64},
        "transformer.layer.{}.attention.",
        "out_lin",
        [Full()],
    ),
    "modernbert": (
        "ModernBertModel",
        {
            **{k: v for k, v in SQUARE.items()},
            "hidden_size": 60,
            "num_attention_heads": 6,
            "local_attention": 6,
            "pad_token_id": 0,
            "layer_types": TYPES,
            "rope_parameters": {
                "sliding_attention": THETA,
                "full_attention": {"rope_theta": 90.0, "rope_type": "default"},
            },
        },
        "layers.{}.attn.",
        "Wo",
        [SlidingWindow(3, 3), Full()],
    ),
    "vit": (
        "ViTModel",
        {
            "hidden_size": 35,
            "num_hidden_layers": 1,
            "num_attention_heads": 5,
            "intermediate_size": 37,
            "image_size": 12,
            "patch_size": 4,
            "qkv_bias": False,
        },
        "layers.{}.attention.",
        "o_proj",
        [Full()],
    ),
    "dinov2": (
        "Dinov2Model",
        {"hidden_size": 35, "num_hidden_layers": 1, "num_attention_heads": 5, "image_size": 12, "patch_size": 4},
        "encoder.layer.{}.attention.",
        "o_proj",
        [Full()],
    ),
    "siglip_text_model": ("SiglipTextModel", SQUARE, "encoder.layers.{}.self_attn.", "out_proj", [Full()]),
}

_NAMES = {
    "query": ("q_proj", "q_lin"),
    "key": ("k_proj", "k_lin"),
    "value": ("v_proj", "v_lin"),
}
_FUSED = ("qkv_proj", "c_attn", "Wqkv", "query_key_value")


def canonical(tensors, config, model):
    """The tensors of a layer by canonical names, by hand."""
    out, heads = {}, {"query": config.num_heads, "key": config.num_kv_heads, "value": config.num_kv_heads}
    conv = model in ("gpt2",)
    for name, x in tensors.items():
        module, _, leaf = name.rpartition(".")
        x = x.T if conv and leaf == "weight" else x
        roles = next((role for role, names in _NAMES.items() if module in names), None)
        if roles:
            parts = {roles: x}
        elif module in _FUSED:
            rows = np.cumsum([heads[r] * config.head_dim for r in heads])[:-1]
            parts = dict(zip(heads, np.split(x, rows), strict=True))
        elif module in ("o_proj", "dense", "out_proj", "c_proj", "out_lin", "Wo"):
            shape = (config.num_heads, config.v_head_dim, -1)
            out["out.kernel" if leaf == "weight" else "out.bias"] = x.T.reshape(shape) if leaf == "weight" else x
            continue
        elif module.startswith(("q_", "k_")):
            role = "query" if module[0] == "q" else "key"
            part = "scale" if leaf == "weight" else "bias"
            out.setdefault(f"{role}_norm.{part}", []).append(x)
            continue
        else:
            raise AssertionError(name)
        for role, part in parts.items():
            shape = (heads[role], config.head_dim)
            if leaf == "weight":
                out[f"{role}.kernel"] = np.moveaxis(part.reshape(*shape, -1), -1, 0)
            else:
                out[f"{role}.bias"] = part.reshape(shape)
    for name, x in out.items():
        if isinstance(x, list):  # a list of modules, one for each head
            x = np.concatenate([each.reshape(-1) for each in x])
            shared = config.qk_norm.scale == "shared"
            out[name] = x if shared else x.reshape(-1, config.head_dim)
    return {name: np.ascontiguousarray(x) for name, x in out.items()}


def compare(family, name, monkeypatch):
    """Every layer of a family in PyTorch's twin, by its row, against transformers."""
    monkeypatch.setattr(capturing, "_held", lambda family, parameters: list(parameters))
    config, layers = capture(family)
    for site, captured in zip(family.sites, layers, strict=True):
        made = AttentionConfig.from_hf(config, site.layer, site.part).replace(dropout_rate=0.0)
        weights = canonical(captured.tensors, made, name)
        mask = site.mask if captured.keys.all() else site.mask & masks.KeyMask(captured.keys)
        lengths = captured.query.shape[1], captured.key.shape[1], 2
        key = None if captured.key is captured.query else captured.key
        call = Call(captured.query, key, allowed=np.asarray(mask.dense(*lengths)))
        verdict = judge(made, weights, call, "float32", frequency_ulps=5.0)
        module = maskattn_torch.MultiHeadAttention(made)
        maskattn_torch.params.load(module, weights)
        other = None if key is None else torch.tensor(key)
        output = module(torch.tensor(captured.query), other, mask=mask).detach().numpy()
        limit = standards.value("module.peer") * verdict.limit
        assert np.all((np.abs(output - captured.output) <= limit)[captured.rows])
        meant = masks.for_hf(config, site.layer, site.part)
        assert np.array_equal(meant.dense(*lengths), site.mask.dense(*lengths))


@pytest.mark.torch
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_transformers_computes(name, monkeypatch):
    model, given, prefix, out, written = ROWS[name]
    sites = tuple(Site(n, prefix.format(n), mask) for n, mask in enumerate(written))
    pixels = model in ("ViTModel", "Dinov2Model")
    family = Family(model, given, "hf-llama", out, sites, "pixels" if pixels else "tokens", "" if pixels else "right")
    compare(family, name, monkeypatch)


@pytest.mark.torch
@pytest.mark.parametrize(
    "model", ["BartModel", "MBartModel", "PegasusModel", "MarianModel", "M2M100Model", "BlenderbotModel"]
)
def test_a_row_of_two_stacks_is_what_transformers_computes(model, monkeypatch):
    sites = (
        Site(0, "encoder.layers.0.self_attn.", Full(), part="encoder"),
        Site(0, "decoder.layers.0.self_attn.", Causal(), part="decoder"),
        Site(0, "decoder.layers.0.encoder_attn.", Full(), part="cross"),
    )
    more = {"pad_token_id": 96, "decoder_start_token_id": 96} if model == "MarianModel" else {}
    family = Family(model, {**S2S, **more}, "hf-bart", "out_proj", sites, "tokens, tokens")
    compare(family, model, monkeypatch)
