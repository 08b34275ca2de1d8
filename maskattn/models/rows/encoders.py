"""BERT and its many relatives."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When
from maskattn.models.build_tasks import FIRST, HEADS, RATE


def _masked(project: str, bias: str, dense: str, norm: str) -> dict[str, str]:
    """The head of a masked language model."""
    return {"project": project, "bias": bias, "dense": dense, "norm": norm}


#: BERT.
BERT: Row = {
    "prefix": "bert.",
    "table": "embeddings.word_embeddings",
    "table_norm": "embeddings.LayerNorm",
    "types": "embeddings.token_type_embeddings",
    "types_rows": Key("type_vocab_size", default=2),
    "positions": "embeddings.position_embeddings",
    "position_rows": Key("max_position_embeddings"),
    "layers": "encoder.layer.{}",
    "attention": (*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense"),
    "norm": "layer",
    "eps": Key("layer_norm_eps", default=1e-12),
    "norms": {"attention_sum": "attention.output.LayerNorm", "mlp_sum": "output.LayerNorm"},
    "mlp": ("intermediate.dense", "output.dense"),
    "mlp_width": Key("intermediate_size"),
    "activation": Key("hidden_act", default="gelu"),
    "dropout": Key("hidden_dropout_prob", default=0.1),
    "pooler": "pooler.dense",
    "head": _masked(
        "cls.predictions.decoder",
        "cls.predictions.bias",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
    ),
    "head_activation": Key("hidden_act", default="gelu"),
    "tied": Key("tie_word_embeddings", default=True),
}
#: Positions count what is no padding, by the ids of tokens.
_ROBERTA: Row = {
    **BERT,
    "prefix": "roberta.",
    "position_rule": "ids",
    "position_pad": Key("pad_token_id", default=1),
    "position_offset": Merged(lambda reading: reading.get("pad_token_id", default=1) + 1),
    "head": _masked("lm_head.decoder", "lm_head.bias", "lm_head.dense", "lm_head.layer_norm"),
    "head_activation": "gelu",
    "sequence_head": FIRST,
}
_PREDICTION = {
    "layers": ("head.dense", "classifier"),
    "activation": Key("classifier_activation", default="gelu"),
    "norm": "head.norm",
    "bare": Key("classifier_bias", default=False),
    "rate": Key("classifier_dropout", default=0.0),
}


def _without(row: Row, *names: str) -> Row:
    """A row without some keys, and what begins with them."""
    return {name: value for name, value in row.items() if not name.startswith(names)}


def _mpnet_table(reading: Reading) -> dict[str, str]:
    """MPNet's table of distances, of 32 buckets: its code reads no other number of them."""
    buckets = reading.get("relative_attention_num_buckets", default=32)
    if buckets != 32:
        raise ValueError(f"{reading.where}: MPNet reads 32 buckets, got relative_attention_num_buckets={buckets!r}")
    return {"relative_attention_bias.table": "encoder.relative_attention_bias.weight"}


def _shared_layer(reading: Reading) -> str:
    """ALBERT's layers are few, and run many times."""
    if reading.get("inner_group_num", default=1) != 1:
        raise ValueError(f"{reading.where}: 'albert' is known with inner_group_num=1, layers that run one by one")
    groups = reading.get("num_hidden_groups", default=1)
    group = int(reading.layer / (reading.get("num_hidden_layers") / groups))
    return f"encoder.albert_layer_groups.{group}.albert_layers.0"


#: ModernBERT's vector of a text.
_IS_FIRST = Merged(lambda reading: reading.get("classifier_pooling", default="cls") == "cls")


def _is_factored(reading: Reading) -> bool:
    return reading.get("embedding_size", default=128) != reading.get("hidden_size")


ENCODERS: dict[str, Row] = {
    "bert": BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": {
        **_without(BERT, "types", "pooler"),
        "prefix": "distilbert.",
        "layers": "transformer.layer.{}",
        "attention": tuple(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        "eps": 1e-12,
        "norms": {"attention_sum": "sa_layer_norm", "mlp_sum": "output_layer_norm"},
        "mlp": ("ffn.lin1", "ffn.lin2"),
        "mlp_width": Key("hidden_dim"),
        "activation": Key("activation", default="gelu"),
        "dropout": (0.0, Key("dropout", default=0.1)),
        "table_dropout": Key("dropout", default=0.1),
        "head": _masked("vocab_projector", "vocab_projector.bias", "vocab_transform", "vocab_layer_norm"),
        "head_activation": Key("activation", default="gelu"),
        "sequence_head": {
            "layers": ("pre_classifier", "classifier"),
            "read": "front",
            "activation": "relu",
            "rate": Key("seq_classif_dropout", default=0.2),
        },
        "token_head": {**HEADS["token_head"], "rate": Key("dropout", default=0.1)},
        "answer_head": {**HEADS["answer_head"], "rate": Key("qa_dropout", default=0.1)},
    },
    "albert": {
        **BERT,
        "prefix": "albert.",
        "table_width": Key("embedding_size", default=128),
        "table_project": "encoder.embedding_hidden_mapping_in",
        "layers": Merged(_shared_layer),
        "attention": tuple(f"attention.{name}" for name in ("query", "key", "value", "dense")),
        "norms": {"attention_sum": "attention.LayerNorm", "mlp_sum": "full_layer_layer_norm"},
        "mlp": ("ffn", "ffn_output"),
        "activation": Key("hidden_act", default="gelu_new"),
        "dropout": (Key("hidden_dropout_prob", default=0.0), 0.0),
        "table_dropout": Key("hidden_dropout_prob", default=0.0),
        "pooler": "pooler",
        "head": _masked("predictions.decoder", "predictions.bias", "predictions.dense", "predictions.LayerNorm"),
        "head_activation": Key("hidden_act", default="gelu_new"),
    },
    "electra": {
        **_without(BERT, "pooler"),
        "prefix": "electra.",
        "table_width": Key("embedding_size", default=128),
        "table_project": When(Merged(_is_factored), "embeddings_project"),
        "head": _masked(
            "generator_lm_head",
            "generator_lm_head.bias",
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
        ),
        "head_activation": "gelu",
        "sequence_head": {**FIRST, "activation": "gelu"},
        "replaced_head": {
            "layers": ("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
            "activation": Key("hidden_act", default="gelu"),
            "flat": True,
        },
    },
    "mpnet": {
        **_without(_ROBERTA, "types"),
        "prefix": "mpnet.",
        "position_pad": 1,
        "position_offset": 2,
        "attention": tuple(f"attention.attn.{name}" for name in ("q", "k", "v", "o")),
        "shared": Merged(_mpnet_table),
        "norms": {"attention_sum": "attention.LayerNorm", "mlp_sum": "output.LayerNorm"},
    },
    "modernbert": {
        "prefix": "model.",
        "table": "embeddings.tok_embeddings",
        "table_norm": "embeddings.norm",
        "layers": "layers.{}",
        "attention": ("attn.Wqkv", "attn.Wo"),
        "norm": "layer",
        "norm_bias": Key("norm_bias", default=False),
        "eps": Key("norm_eps", default=1e-5),
        "norms": Merged(
            lambda reading: ({"attention_in": "attn_norm"} if reading.layer else {}) | {"mlp_in": "mlp_norm"}
        ),
        "mlp": ("mlp.Wi", "mlp.Wo"),
        "halves": True,
        "mlp_width": Key("intermediate_size"),
        "mlp_bias": Key("mlp_bias", default=False),
        "activation": Key("hidden_activation", default="gelu"),
        "final": "final_norm",
        "dropout": (Key("attention_dropout", default=0.0), 0.0),
        "table_dropout": Key("embedding_dropout", default=0.0),
        "inner_dropout": Key("mlp_dropout", default=0.0),
        "head": {
            "project": "decoder",
            "bias": When(Key("decoder_bias", default=True), "decoder.bias"),
            "dense": "head.dense",
            "norm": "head.norm",
        },
        "dense_bias": Key("classifier_bias", default=False),
        "head_activation": Key("classifier_activation", default="gelu"),
        "sequence_head": {**_PREDICTION, "read": When(_IS_FIRST, "front", "mean")},
        "token_head": _PREDICTION,
        "answer_head": _PREDICTION,
        "tied": Key("tie_word_embeddings", default=True),
    },
    "nomic_bert": {
        **_without(BERT, "position", "pooler"),
        "prefix": "nomic_bert.",
        "layers": "layers.{}",
        "attention": tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
        "norms": {"attention_sum": "post_attention_layernorm", "mlp_sum": "post_mlp_layernorm"},
        "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        "mlp_bias": False,
        "dropout": Key("hidden_dropout_prob", default=0.0),
        "activation": Key("hidden_act", default="silu"),
        "head": _masked(
            "cls.predictions.decoder",
            "cls.predictions.bias",
            "cls.predictions.transform.dense",
            "cls.predictions.transform.layer_norm",
        ),
        "head_activation": Key("hidden_act", default="silu"),
        "sequence_head": {
            "layers": ("nomic_bert.pooler.dense", "classifier"),
            "read": "front",
            "activation": "tanh",
            "rate": RATE,
        },
    },
}
