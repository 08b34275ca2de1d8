"""Encoders of BERT's kind with something of their own."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When
from maskattn.models.build_tasks import FIRST, HEADS, RATE
from maskattn.models.rows.encoders import BERT, ENCODERS


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if not name.startswith(names)}


def _is_absolute(reading: Reading) -> bool:
    """Whether ESM has a table of positions.

    Raises:
        ValueError: it is a model that folds proteins, which has more than one stack.
    """
    if reading.get("is_folding_model", default=False):
        raise ValueError(f"{reading.where}: ESM models that fold proteins (is_folding_model) are not known here")
    return bool(reading.get("position_embedding_type", default="absolute") == "absolute")


def _span(reading: Reading) -> int:
    """Rows of DeBERTa's table of relative positions."""
    most = reading.get("max_relative_positions", default=-1)
    buckets = reading.get("position_buckets", default=-1)
    most = most if most >= 1 else reading.get("max_position_embeddings", default=512)
    return 2 * int(buckets if buckets > 0 else most)


def _is_factored(reading: Reading) -> bool:
    width = reading.get("hidden_size")
    return bool(reading.get("embedding_size", default=width) != width)


def _is_normed(reading: Reading) -> bool:
    named = reading.get("norm_rel_ebd", default="none").lower().split("|")
    return "layer_norm" in [name.strip() for name in named]


def _is_sparse(reading: Reading) -> bool:
    kind = reading.get("attention_type", default="block_sparse")
    if kind not in ("block_sparse", "original_full"):
        raise ValueError(f"{reading.where}: attention_type must be block_sparse or original_full, got {kind!r}")
    if kind == "block_sparse" and reading.get("is_decoder", default=False):
        raise ValueError(
            f"{reading.where}: is_decoder with attention_type=block_sparse is refused: it sees later tokens"
        )
    return kind == "block_sparse"


def _draws_blocks(reading: Reading) -> str | None:
    count = reading.get("num_random_blocks", default=3)
    return (
        f"num_random_blocks={count} are drawn, and otherwise the first block" if _is_sparse(reading) and count else None
    )


_DEBERTA_HEAD = {
    "project": "lm_predictions.lm_head.decoder",
    "bias": "lm_predictions.lm_head.bias",
    "dense": "lm_predictions.lm_head.dense",
    "norm": "lm_predictions.lm_head.LayerNorm",
}
_LEGACY = Key("legacy", default=True)

FURTHER: dict[str, Row] = {
    "esm": {
        **_without(BERT, "types", "position"),
        "prefix": "esm.",
        "table_norm": When(Key("emb_layer_norm_before", default=False), "embeddings.layer_norm"),
        "positions": When(Merged(_is_absolute), "embeddings.position_embeddings"),
        "position_rows": Key("max_position_embeddings", default=1026),
        "position_rule": "ids",
        "position_pad": Key("pad_token_id", default=None),
        "position_offset": Merged(lambda reading: reading.get("pad_token_id", default=0) + 1),
        "dropped": When(Key("token_dropout", default=False), Key("mask_token_id")),
        "blank": True,
        "frequencies": "rotary_embeddings.inv_freq",
        "norms": {"attention_in": "attention.LayerNorm", "mlp_in": "LayerNorm"},
        "activation": "gelu",
        "table_dropout": 0.0,
        "final": "encoder.emb_layer_norm_after",
        "head": ENCODERS["roberta"]["head"],
        "head_activation": "gelu",
        "contacts": "contact_head.regression",
        "sequence_head": FIRST,
    },
    "deberta-v2": {
        **_without(BERT, "pooler"),
        "prefix": "deberta.",
        "table_width": Key("embedding_size", default=None),
        "table_project": When(Merged(_is_factored), "embeddings.embed_proj"),
        "table_project_bias": False,
        "table_late": True,
        "blank": True,
        "types": When(Merged(lambda reading: reading.get("type_vocab_size", default=0) > 0), BERT["types"]),
        "positions": When(Key("position_biased_input", default=True), BERT["positions"]),
        "attention": (
            *(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
            "attention.output.dense",
        ),
        "further": {"pos_key": "attention.self.pos_key_proj", "pos_query": "attention.self.pos_query_proj"},
        "eps": Key("layer_norm_eps", default=1e-7),
        "relative": When(
            Key("relative_attention", default=False),
            {
                "table": "encoder.rel_embeddings",
                "rows": Merged(_span),
                "norm": When(Merged(_is_normed), "encoder.LayerNorm"),
            },
        ),
        "relative_dropout": Key("hidden_dropout_prob", default=0.1),
        "local": When(
            Merged(lambda reading: reading.get("conv_kernel_size", default=0) > 0),
            {
                "conv": "encoder.conv.conv",
                "norm": "encoder.conv.LayerNorm",
                "size": Key("conv_kernel_size"),
                "groups": Key("conv_groups", default=1),
                "activation": Key("conv_act", default="tanh"),
            },
        ),
        "head": When(_LEGACY, BERT["head"], _DEBERTA_HEAD),
        "tied": When(_LEGACY, BERT["tied"], True),
        "sequence_head": {
            "layers": ("pooler.dense", "classifier"),
            "read": "front",
            "activation": Key("pooler_hidden_act", default="gelu"),
            "rate": RATE,
        },
    },
    "big_bird": {
        **BERT,
        "table_scale": When(
            Key("rescale_embeddings", default=False), Merged(lambda reading: reading.get("hidden_size") ** 0.5), 1.0
        ),
        "sparse": When(
            Merged(_is_sparse),
            {"size": Key("block_size", default=64), "random": Key("num_random_blocks", default=3)},
        ),
        "untrained": Merged(_draws_blocks),
        "activation": Key("hidden_act", default="gelu_new"),
        "head_activation": Key("hidden_act", default="gelu_new"),
        "pooler": "pooler",
        "sequence_head": {**FIRST, "activation": Key("hidden_act", default="gelu_new")},
        "answer_head": None,
    },
    "longformer": {
        **ENCODERS["roberta"],
        "prefix": "longformer.",
        "further": {f"{name}_global": f"attention.self.{name}_global" for name in ("query", "key", "value")},
        "sequence_head": {**FIRST, "marks": "first"},
        "answer_head": {**HEADS["answer_head"], "marks": "question"},
    },
}
