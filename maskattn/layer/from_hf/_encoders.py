"""Rows of encoders of text and of sound."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf._specs import Key, Merged, Rope, Row, When
from maskattn.layer.parts import GlobalTokens
from maskattn.layer.position_bias import Disentangled, T5Table

_DROPOUT = Key("attention_probs_dropout_prob", "attention_dropout", default=0.1)

_NONE = Key("attention_probs_dropout_prob", "attention_dropout", default=0.0)


def _absolute(reading: Reading) -> None:
    """Relative positions of BERT, by a table of keys: transformers 4 had them, and no part has.

    Raises:
        ValueError: the configuration asks for them.
    """
    kind = reading.get("position_embedding_type", default="absolute")
    if str(kind).startswith("relative"):
        raise ValueError(f"{reading.where}: position_embedding_type {kind!r} is what no part of a layer is")


#: BERT and its many relatives.
BERT: Row = {
    "embed_dim": Key("hidden_size"),
    "num_heads": Key("num_attention_heads"),
    "position_bias": Merged(_absolute),
    "dropout_rate": _DROPOUT,
}


def _terms(reading: Reading) -> tuple[bool, bool]:
    """DeBERTa's: content to position, position to content."""
    named = reading.get("pos_att_type", default=())
    named = named.lower().split("|") if isinstance(named, str) else named
    return "c2p" in named, "p2c" in named


def _disentangled(reading: Reading) -> Disentangled | None:
    terms = _terms(reading)
    if not reading.get("relative_attention", default=False) or not any(terms):
        return None
    most = reading.get("max_relative_positions", default=-1)
    most = most if most >= 1 else reading.get("max_position_embeddings", default=512)
    buckets = max(reading.get("position_buckets", default=-1), 0)
    return Disentangled(
        buckets or most,
        buckets=buckets,
        max_distance=most,
        to_position=terms[0],
        from_position=terms[1],
        shared=bool(reading.get("share_att_key", default=False)),
    )


def _deberta_scale(reading: Reading) -> float:
    width = reading.get("attention_head_size", default=None)
    width = reading.get("hidden_size") // reading.get("num_attention_heads") if width is None else width
    return float(width * (1 + sum(_terms(reading)))) ** -0.5


ENCODERS: dict[str, Row] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT,
    "albert": {**BERT, "dropout_rate": _NONE},
    "ernie": BERT,
    "distilbert": {
        "embed_dim": Key("dim", "hidden_size"),
        "num_heads": Key("n_heads", "num_attention_heads"),
        "dropout_rate": _DROPOUT,
    },
    "mpnet": {**BERT, "position_bias": T5Table(32, 128)},
    "deberta-v2": {**BERT, "scale": Merged(_deberta_scale), "position_bias": Merged(_disentangled)},
    "big_bird": {**BERT, "qkv_bias": Key("use_bias", default=True)},
    "longformer": {**BERT, "global_tokens": GlobalTokens()},
    "modernbert": {
        **BERT,
        "dropout_rate": _NONE,
        "qkv_bias": Key("attention_bias", default=False),
        "out_bias": Key("attention_bias", default=False),
        "rotary": Rope(
            theta=Key("global_rope_theta", default=160000.0), local=Key("local_rope_theta", default=10000.0)
        ),
    },
    "nomic_bert": {
        **BERT,
        "head_dim": Key("head_dim", default=None),
        "dropout_rate": _NONE,
        "qkv_bias": False,
        "out_bias": False,
        "rotary": Rope(theta=1000.0),
    },
    "esm": {
        **BERT,
        "rotary": When(Merged(lambda reading: reading.get("position_embedding_type", default="") == "rotary"), Rope()),
    },
    "wav2vec2": BERT,
    "hubert": BERT,
}
