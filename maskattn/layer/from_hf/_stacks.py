"""Rows of models with an encoder and a decoder, which has attention of its own and to the encoder."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn._hf_config import Reading, Value
from maskattn.layer.from_hf._specs import Every, Key, Made, Row, Spec
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

_IN_BOTH_DIRECTIONS = Made(T5Table, **_BUCKETS, bidirectional=True)
_TO_THE_LEFT = Made(T5Table, **_BUCKETS, bidirectional=False)

#: T5 and its relatives. Layers of a stack share the table of its first, but in UMT5, where each has its own.
T5: Row = {
    "embed_dim": Key("d_model", "hidden_size"),
    "num_heads": Key("num_heads", "num_attention_heads"),
    "head_dim": Key("d_kv", default=64),
    "qkv_bias": False,
    "out_bias": False,
    "scale": 1.0,
    "position_bias": Every(encoder=_IN_BOTH_DIRECTIONS, decoder=_TO_THE_LEFT),
    "dropout_rate": Key("dropout_rate", default=0.1),
}


@dataclass(frozen=True)
class _Local(Spec):
    """The table of LongT5's local attention."""

    def read(self, reading: Reading, part: str) -> Value:
        kind = reading.get("encoder_attention_type", default="local")
        if kind != "local":
            raise ValueError(
                f"{reading.where}: encoder_attention_type must be local, of layers, got {kind!r}: transient-global has "
                "keys that are sums of tokens, which no part of a layer is; maskattn.models has it"
            )
        return _IN_BOTH_DIRECTIONS.read(reading, part)


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
    "longt5": {**T5, "position_bias": Every(encoder=_Local(), decoder=_TO_THE_LEFT)},
}
