"""BART, T5 and their relatives: both stacks in one row."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Every, Key, Merged, Row, When
from maskattn.models.build_tasks import END, HEADS
from maskattn.models.rows.sound import hides_frames


def _both(text: str) -> Every:
    """A name of either stack, where * stands for which."""
    return Every(encoder=text.replace("*", "encoder"), decoder=text.replace("*", "decoder"))


def _names(prefix: str, *last: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in last)


def _root(reading: Reading) -> float:
    return float(reading.get("d_model") ** 0.5)


# BART ----------------------------------------------------------------------------------------------------------------

_TIED = Key("tie_word_embeddings", default=True)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_DROPOUT = Key("dropout", default=0.1)
_POST = {"attention_sum": "self_attn_layer_norm", "mlp_sum": "final_layer_norm"}
_PRE = {"attention_in": "self_attn_layer_norm", "mlp_in": "final_layer_norm"}
_PRE_NORM: Row = {
    "norms": Every(encoder=_PRE, decoder={**_PRE, "cross_in": "encoder_attn_layer_norm"}),
    "final": _both("*.layer_norm"),
}

BART: Row = {
    "kind": "two",
    "prefix": "model.",
    "table": When(_TIED, "shared", _both("*.embed_tokens")),
    "spare": When(_TIED, None, "shared"),
    "table_scale": When(Key("scale_embedding", default=False), Merged(_root), 1.0),
    "table_norm": _both("*.layernorm_embedding"),
    "positions": _both("*.embed_positions"),
    "position_rows": Merged(lambda reading: reading.get("max_position_embeddings") + 2),
    "position_offset": 2,
    "layers": _both("*.layers.{}"),
    "count": Key("{stack}_layers"),
    "attention": _names("self_attn", *_PROJECTIONS),
    "cross": Every(decoder=_names("encoder_attn", *_PROJECTIONS)),
    "norm": "layer",
    "eps": 1e-5,
    "norms": Every(encoder=_POST, decoder={**_POST, "cross_sum": "encoder_attn_layer_norm"}),
    "mlp": ("fc1", "fc2"),
    "mlp_width": Key("{stack}_ffn_dim"),
    "activation": Key("activation_function", default="gelu"),
    "dropout": _DROPOUT,
    "inner_dropout": Key("activation_dropout", default=0.0),
    "layerdrop": Key("{stack}_layerdrop", default=0.0),
    "head": {"project": "lm_head", "bias": "final_logits_bias"},
    "bias_buffer": True,
    "tied": _TIED,
    "shift": "start",
    "pad": 1,
    "start": 2,
    "end": 2,
    "sequence_head": END,
}
_SAVED: Row = {
    "table_norm": None,
    "position_rows": Key("max_position_embeddings"),
    "position_offset": 0,
    "position_table": "halves",
    "shift": "",
}
_ONE_VOCABULARY = Key("share_encoder_decoder_embeddings", default=True)

# T5 ------------------------------------------------------------------------------------------------------------------


def _is_gated(reading: Reading, default: str = "relu") -> bool:
    said = str(reading.get("feed_forward_proj", default=default)).startswith("gated-")
    return bool(reading.get("is_gated_act", default=said))


def _activation(default: str) -> Merged:
    def of(reading: Reading) -> str:
        kind = str(reading.get("feed_forward_proj", default=default))
        said = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
        return str(reading.get("dense_act_fn", default=said))

    return Merged(of)


def _scale(reading: Reading) -> float:
    """T5's logits are scaled, those of its version 1.1 are not: files of that say that nothing is tied."""
    scaled = reading.get("scale_decoder_outputs", default=None)
    scaled = reading.get("tie_word_embeddings", default=True) if scaled is None else scaled
    return 1 / _root(reading) if scaled else 1.0


def _mlp(last: str, default: str) -> When:
    dense = f"layer.{last}.DenseReluDense"
    gated = Merged(lambda reading: _is_gated(reading, default))
    return When(gated, _names(dense, "wi_0", "wi_1", "wo"), _names(dense, "wi", "wo"))


def _t5(default: str) -> Row:
    """T5 and what its MLP is by default."""
    return {
        "kind": "two",
        "refused": {"is_decoder": "its encoder would be a decoder"},
        "end": 1,
        "sequence_head": END,
        "token_head": {**HEADS["token_head"], "rate": END["rate"]},
        "table": "shared",
        "layers": _both("*.block.{}"),
        "count": Every(encoder=Key("num_layers"), decoder=Key("num_decoder_layers", "num_layers")),
        "attention": _names("layer.0.SelfAttention", *"qkvo"),
        "cross": Every(decoder=_names("layer.1.EncDecAttention", *"qkvo")),
        "shared": {
            "relative_attention_bias.table": _both("*.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        },
        "norm": "rms",
        "eps": Key("layer_norm_epsilon", default=1e-6),
        "norms": {
            "attention_in": "layer.0.layer_norm",
            "cross_in": Every(decoder="layer.1.layer_norm"),
            "mlp_in": Every(encoder="layer.1.layer_norm", decoder="layer.2.layer_norm"),
        },
        "final": _both("*.final_layer_norm"),
        "mlp": Every(encoder=_mlp("1", default), decoder=_mlp("2", default)),
        "mlp_width": Key("d_ff"),
        "mlp_bias": False,
        "activation": _activation(default),
        "dropout": Key("dropout_rate", default=0.1),
        "inner_dropout": Key("dropout_rate", default=0.1),
        "final_dropout": Key("dropout_rate", default=0.1),
        "pad": 0,
        "head": "lm_head",
        # whatever a file says: one with other numbers in its head has a head of its own all the same
        "tied": True,
        "logit_scale": Merged(_scale),
    }


T5 = _t5("relu")
_GATED_T5 = _t5("gated-gelu")


def _longt5_layer(reading: Reading) -> str:
    return _LONGT5[reading.get("encoder_attention_type", default="local")]


_LONGT5 = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}


def _longt5(last: str) -> Merged:
    """A name of what belongs to attention in the encoder."""
    return Merged(lambda reading: f"layer.0.{_longt5_layer(reading)}.{last}")


_IS_TRANSIENT = Merged(lambda reading: reading.get("encoder_attention_type", default="local") == "transient-global")
_TABLE = "relative_attention_bias.weight"

ENCODER_DECODERS: dict[str, Row] = {
    "bart": BART,
    "mbart": {**BART, **_PRE_NORM, "shift": "last", "start": None},
    "pegasus": {**BART, **_PRE_NORM, **_SAVED, "pad": 0, "start": 0},
    "marian": {
        **BART,
        **_SAVED,
        "pad": 58100,
        "start": 58100,
        "table": When(_ONE_VOCABULARY, BART["table"], _both("*.embed_tokens")),
        "spare": None,
        "vocabulary": When(
            _ONE_VOCABULARY,
            Key("vocab_size"),
            Every(encoder=Key("vocab_size"), decoder=Key("decoder_vocab_size", "vocab_size")),
        ),
    },
    "m2m_100": {
        **BART,
        **_PRE_NORM,
        "table_scale": When(Key("scale_embedding", default=True), Merged(_root), 1.0),
        "table_norm": None,
        "positions": None,
        "position_table": "computed",
        "position_rows": Key("max_position_embeddings"),
        "position_rule": "ids",
        "position_pad": Key("pad_token_id", default=1),
        "position_offset": Merged(lambda reading: reading.get("pad_token_id", default=1) + 1),
        "activation": Key("activation_function", default="relu"),
        "layerdrop": Key("{stack}_layerdrop", default=0.05),
        "head": "lm_head",
        "shift": "",
    },
    "led": {
        **BART,
        "prefix": "led.",
        "table_scale": 1.0,
        "position_rows": Key("max_{stack}_position_embeddings"),
        "position_offset": 0,
        "attention": Every(
            encoder=(*_names("self_attn.longformer_self_attn", "query", "key", "value"), "self_attn.output"),
            decoder=BART["attention"],
        ),
        "further": {
            f"{name}_global": Every(encoder=f"self_attn.longformer_self_attn.{name}_global")
            for name in ("query", "key", "value")
        },
    },
    "whisper": {
        **BART,
        **_PRE_NORM,
        "pad": 50256,
        "start": 50257,
        "table": "decoder.embed_tokens",
        "spare": None,
        "table_scale": 1.0,
        "table_norm": None,
        "frames": Every(encoder=("encoder.conv1", "encoder.conv2", "encoder.embed_positions.weight")),
        "position_rows": Every(encoder=Key("max_source_positions"), decoder=Key("max_target_positions")),
        "position_offset": 0,
        "attention_bias": (True, False, True, True),
        "dropout": Key("dropout", default=0.0),
        "untrained": hides_frames(False),
        "head": "proj_out",
        "shift": "",
    },
    "t5": T5,
    "mt5": {**_GATED_T5, "start": 0, "logit_scale": 1.0},
    "umt5": {
        "start": 0,
        **{name: value for name, value in _GATED_T5.items() if name != "shared"},
        "held": {"relative_attention_bias.table": f"layer.0.SelfAttention.{_TABLE}"},
        "logit_scale": Merged(lambda reading: 1 / _root(reading)),
    },
    "longt5": {
        **T5,
        "attention": Every(encoder=tuple(_longt5(name) for name in "qkvo"), decoder=T5["attention"]),
        "shared": {
            "relative_attention_bias.table": Every(
                encoder=Merged(lambda reading: f"encoder.block.0.layer.0.{_longt5_layer(reading)}.{_TABLE}"),
                decoder=f"decoder.block.0.layer.0.SelfAttention.{_TABLE}",
            )
        },
        "transient": Every(
            encoder=When(
                _IS_TRANSIENT,
                {
                    "norm": _longt5("global_input_layer_norm"),
                    "table": Merged(
                        lambda reading: f"encoder.block.0.layer.0.{_longt5_layer(reading)}.global_{_TABLE}"
                    ),
                },
            )
        ),
    },
}
