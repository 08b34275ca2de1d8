"""Rows of models with an encoder and a decoder, which has attention of its own and to the encoder."""

from __future__ import annotations

from maskattn.layer.from_hf._specs import Every, Key, Made, Row
from maskattn.layer.parts import GlobalTokens
from maskattn.layer.position_bias import T5Table

#: BART and its relatives.
BART: Row = {
    "embed_dim": Key("d_model", "hidden_size"),
    "num_heads": Key("{stack}_attention_heads"),
    "dropout_rate": Key("attention_dropout", default=0.0),
}

_BUCKETS = {
    "buckets": Key("relative_attention_num_buckets", default=32),
    "max_distance": Key("relative_attention_max_distance", default=128),
}

#: T5 and its relatives. Layers of a stack share the table of its first, but in UMT5, where each has its own.
T5: Row = {
    "embed_dim": Key("d_model", "hidden_size"),
    "num_heads": Key("num_heads", "num_attention_heads"),
    "head_dim": Key("d_kv", default=64),
    "qkv_bias": False,
    "out_bias": False,
    "scale": 1.0,
    "position_bias": Every(
        encoder=Made(T5Table, **_BUCKETS, bidirectional=True), decoder=Made(T5Table, **_BUCKETS, bidirectional=False)
    ),
    "dropout_rate": Key("dropout_rate", default=0.1),
}

STACKS: dict[str, Row] = {
    "bart": BART,
    "mbart": BART,
    "pegasus": BART,
    "marian": BART,
    "m2m_100": {**BART, "dropout_rate": Key("attention_dropout", default=0.1)},
    "blenderbot": BART,
    "led": {**BART, "global_tokens": Every(encoder=GlobalTokens())},
    "whisper": BART,
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
}
