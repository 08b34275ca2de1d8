"""Tiny models with an encoder and a decoder."""

from __future__ import annotations

from typing import Any

from maskattn.parity.models.tiny._tiny import Tiny

_BART = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
}
_T5 = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 44,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 5,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_LED = {
    **{name: value for name, value in _BART.items() if not name.startswith("max")},
    "attention_window": [8, 4],
    "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 60,
}
_GLOBAL = [[1] + [0] * 13, [0, 0, 0, 0, 1, 1] + [0] * 8]
_LONG = {"local_radius": 3, "global_block_size": 4}


def _t5(model: str, config: dict[str, Any], inputs: str = "both", length: int = 14) -> Tiny:
    return Tiny(model, {**_T5, **config}, inputs, length=length, small=".q.weight")


ENCODER_DECODERS: dict[str, Tiny] = {
    "bart": Tiny("BartForConditionalGeneration", _BART, "both"),
    "bart+shifted": Tiny("BartForConditionalGeneration", {**_BART, "scale_embedding": True}),
    "bart+plain": Tiny("BartModel", _BART, "both"),
    "bart+apart": Tiny("BartForConditionalGeneration", {**_BART, "tie_word_embeddings": False}, "both"),
    "mbart": Tiny("MBartForConditionalGeneration", {**_BART, "scale_embedding": True}, "both"),
    "mbart+shifted": Tiny("MBartForConditionalGeneration", _BART, padding=("right",)),
    "pegasus": Tiny("PegasusForConditionalGeneration", {**_BART, "scale_embedding": True}, "both"),
    "marian": Tiny(
        "MarianMTModel",
        {**_BART, "scale_embedding": True, "pad_token_id": 96, "decoder_start_token_id": 96},
        "both",
    ),
    "marian+apart": Tiny(
        "MarianMTModel",
        {
            **_BART,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "decoder_vocab_size": 93,
            "share_encoder_decoder_embeddings": False,
            "activation_function": "swish",
        },
        "both",
    ),
    "m2m_100": Tiny("M2M100ForConditionalGeneration", _BART, "both"),
    "led": Tiny("LEDForConditionalGeneration", _LED, "both"),
    "led+global": Tiny("LEDForConditionalGeneration", _LED, "both", options={"global_attention_mask": _GLOBAL}),
    "whisper": Tiny(
        "WhisperForConditionalGeneration",
        {
            **{name: value for name, value in _BART.items() if not name.startswith("max")},
            "num_mel_bins": 12,
            "max_source_positions": 20,
            "max_target_positions": 30,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
            "begin_suppress_tokens": None,
            "scale_embedding": True,
        },
        "spectrum",
        padding=(),
        length=40,
    ),
    "t5": _t5("T5ForConditionalGeneration", {}),
    "t5+gated": _t5("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5+encoder": _t5("T5EncoderModel", {}, "tokens"),
    "mt5": _t5("MT5ForConditionalGeneration", {}),
    "umt5": _t5("UMT5ForConditionalGeneration", {}),
    "longt5": _t5("LongT5ForConditionalGeneration", {**_LONG, "encoder_attention_type": "local"}),
    "longt5+global": _t5(
        "LongT5ForConditionalGeneration", {**_LONG, "encoder_attention_type": "transient-global"}, length=18
    ),
}
