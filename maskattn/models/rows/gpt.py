"""GPT-2 and what came of it."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When
from maskattn.models.build_tasks import LAST

_TIED = Key("tie_word_embeddings", default=True)

#: GPT-2, its learned positions and all.
GPT2: Row = {
    "prefix": "transformer.",
    "table": "wte",
    "positions": "wpe",
    "position_rows": Key("n_positions", "max_position_embeddings"),
    "layers": "h.{}",
    "attention": ("attn.c_attn", "attn.c_proj"),
    "turned": True,
    "norm": "layer",
    "eps": Key("layer_norm_epsilon", default=1e-5),
    "norms": {"attention_in": "ln_1", "mlp_in": "ln_2"},
    "mlp": ("mlp.c_fc", "mlp.c_proj"),
    "mlp_width": Key("n_inner", "intermediate_size", default=None),
    "activation": Key("activation_function", default="gelu_new"),
    "final": "ln_f",
    "head": "lm_head",
    "sequence_head": LAST,
    "tied": _TIED,
    "dropout": Key("resid_pdrop", "resid_dropout", default=0.1),
    "table_dropout": Key("embd_pdrop", "embed_dropout", default=0.1),
}
_BRANCHES: Row = {
    "prefix": "transformer.",
    "table": "word_embeddings",
    "layers": "h.{}",
    "attention": ("self_attention.query_key_value", "self_attention.dense"),
    "fused": "groups",
    "norm": "layer",
    "eps": Key("layer_norm_epsilon", default=1e-5),
    "norms": {"attention_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
    "mlp": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "mlp_width": Key("ffn_hidden_size", default=None),
    "final": "ln_f",
    "head": "lm_head",
    "sequence_head": LAST,
    "tied": _TIED,
    "dropout": Key("hidden_dropout", default=0.0),
    "table_dropout": 0.0,
}


def _falcon_norms(reading: Reading) -> dict[str, str]:
    if not reading.get("new_decoder_architecture", default=False):
        both = not reading.get("parallel_attn", default=True)
        return {"attention_in": "input_layernorm"} | ({"mlp_in": "post_attention_layernorm"} if both else {})
    if reading.get("num_ln_in_parallel_attn", default=None) == 1:
        return {"attention_in": "input_layernorm"}
    return {"attention_in": "ln_attn", "mlp_in": "ln_mlp"}


def _falcon_drops(reading: Reading) -> str | None:
    """Its two rates are of sums of branches, and of other places where branches are not parallel."""
    on = [
        f"{name}={rate}" for name in ("hidden_dropout", "attention_dropout") if (rate := reading.get(name, default=0))
    ]
    return f"{', '.join(on)} drops sums of branches" if on else None


def _falcon_is_parallel(reading: Reading) -> bool:
    return bool(reading.get("new_decoder_architecture", default=False) or reading.get("parallel_attn", default=True))


def _opt_is_narrow(reading: Reading) -> bool:
    return reading.get("word_embed_proj_dim", default=None) not in (None, reading.get("hidden_size"))


_OPT_BEFORE = Key("do_layer_norm_before", default=True)

GPT: dict[str, Row] = {
    "gpt2": GPT2,
    "gpt_bigcode": {
        **GPT2,
        "turned": False,
        "fused": When(Key("multi_query", default=True), "blocks", "groups"),
        "activation": Key("activation_function", default="gelu_pytorch_tanh"),
    },
    "gpt_neo": {
        **GPT2,
        "turned": False,
        "attention": tuple(f"attn.attention.{name}_proj" for name in ("q", "k", "v", "out")),
        "attention_bias": (False, False, False, True),
    },
    "gptj": {
        **{name: value for name, value in GPT2.items() if not name.startswith("position")},
        "turned": False,
        "attention": tuple(f"attn.{name}_proj" for name in ("q", "k", "v", "out")),
        "norms": {"attention_in": "ln_1"},
        "parallel": True,
        "mlp": ("mlp.fc_in", "mlp.fc_out"),
        "head_bias": True,
        "tied": Key("tie_word_embeddings", default=False),
        "dropout": Key("resid_pdrop", default=0.0),
        "table_dropout": Key("embd_pdrop", default=0.0),
    },
    "gpt_neox": {
        **_BRANCHES,
        "prefix": "gpt_neox.",
        "table": "embed_in",
        "layers": "layers.{}",
        "attention": ("attention.query_key_value", "attention.dense"),
        "eps": Key("layer_norm_eps", default=1e-5),
        "parallel": Key("use_parallel_residual", default=True),
        "mlp_width": Key("intermediate_size"),
        "activation": Key("hidden_act", default="gelu"),
        "final": "final_layer_norm",
        "tied": Key("tie_word_embeddings", default=False),
        "table_dropout": Key("hidden_dropout", default=0.0),
    },
    "opt": {
        "prefix": "model.decoder.",
        "table": "embed_tokens",
        "table_width": Key("word_embed_proj_dim", default=None),
        "table_project": When(Merged(_opt_is_narrow), "project_in"),
        "project": When(Merged(_opt_is_narrow), "project_out"),
        "table_project_bias": False,
        "positions": "embed_positions",
        "position_rows": Merged(lambda reading: reading.get("max_position_embeddings") + 2),
        "position_width": Key("hidden_size"),
        "position_rule": "mask",
        "position_offset": 2,
        "layers": "layers.{}",
        "attention": tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        "norm": "layer",
        "eps": 1e-5,
        "norm_scale": Key("layer_norm_elementwise_affine", default=True),
        "norm_bias": Key("layer_norm_elementwise_affine", default=True),
        "norms": When(
            _OPT_BEFORE,
            {"attention_in": "self_attn_layer_norm", "mlp_in": "final_layer_norm"},
            {"attention_sum": "self_attn_layer_norm", "mlp_sum": "final_layer_norm"},
        ),
        "mlp": ("fc1", "fc2"),
        "mlp_width": Key("ffn_dim"),
        "mlp_bias": Key("enable_bias", default=True),
        "activation": Key("activation_function", default="relu"),
        "final": When(_OPT_BEFORE, When(Key("_remove_final_layer_norm", default=False), None, "final_layer_norm")),
        "head": "lm_head",
        "sequence_head": LAST,
        "tied": _TIED,
        "dropout": Key("dropout", default=0.1),
        "table_dropout": 0.0,
        "layerdrop": Key("layerdrop", default=0.0),
    },
    "bloom": {
        **_BRANCHES,
        "table_norm": "word_embeddings_layernorm",
        "activation": "gelu_tanh",
        "normed_sum": Key("apply_residual_connection_post_layernorm", default=False),
    },
    "mpt": {
        **_BRANCHES,
        "table": "wte",
        "layers": "blocks.{}",
        "attention": ("attn.Wqkv", "attn.out_proj"),
        "fused": "blocks",
        "norm_bias": False,
        "norms": {"attention_in": "norm_1", "mlp_in": "norm_2"},
        "mlp": ("ffn.up_proj", "ffn.down_proj"),
        "mlp_bias": False,
        "final": "norm_f",
    },
    "falcon": {
        **_BRANCHES,
        "norms": Merged(_falcon_norms),
        "parallel": Merged(_falcon_is_parallel),
        "mlp_bias": Key("bias", default=False),
        "activation": Key("activation", default="gelu"),
        "untrained": Merged(_falcon_drops),
    },
}
