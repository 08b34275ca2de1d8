"""Families of Hugging Face models: a row for each, from which its layers are built, captured and compared.

Sizes are distinct and mostly prime, so that no two axes can be exchanged unseen; values such as eps and theta are far
from their defaults, so that a fact that is not read shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskattn.masks import BlockCausal, Causal, Chunked, Full, Global, Mask, ShiftedWindow, SlidingWindow
from maskattn.typing import NumPyArray as Array

#: How many tokens there are where a row does not say.
LENGTH = 13


@dataclass(frozen=True)
class Site:
    """One attention layer of a model.

    Attributes:
        layer: its number, as `AttentionConfig.from_hf` and `masks.for_hf` count.
        prefix: of its tensors, in the model.
        mask: written in the algebra, without padding.
        enters: the module below the prefix that the hidden states enter; "" is the layer itself.
        part: "encoder", "decoder" or "cross", of a model that has them.
        bias: what the family adds to the logits that no part of a layer makes, from the number of tokens.
    """

    layer: int
    prefix: str
    mask: Mask
    enters: str = ""
    part: str | None = None
    bias: Callable[[int], Array] | None = None


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        model, config: the class of transformers, and what its configuration is given.
        layout: in which its layers' tensors are (`maskattn.convert.layouts`).
        out: the output projection, below the prefix.
        sites: the layers.
        inputs: "tokens", "pixels", "sound", or "tokens, tokens" of an encoder and a decoder.
        padding: on which side of the second sequence, "right" or "left"; "" where the family takes none.
        length: tokens of a sequence.
        globals: places of tokens that attend to everything.
        decodes: whether it writes token by token.
        reasons: columns that do not hold, and why not, in the family's own documented behaviour.
    """

    model: str
    config: Mapping[str, Any]
    layout: str
    out: str
    sites: tuple[Site, ...]
    inputs: str = "tokens"
    padding: str = "right"
    length: int = LENGTH
    globals: tuple[int, ...] = ()
    decodes: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)


_WORDS = {"vocab_size": 97, "num_hidden_layers": 2, "max_position_embeddings": 64, "intermediate_size": 37}
_SQUARE = {**_WORDS, "hidden_size": 35, "num_attention_heads": 5}
_GROUPED = {
    **_WORDS,
    "hidden_size": 36,  # a multiple of 4, in which PyTorch multiplies experts, and of the heads, as Gemma 2 checks
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "rms_norm_eps": 0.07,
    "pad_token_id": 0,
}
_THETA = {"rope_type": "default", "rope_theta": 50.0}


def _bert(layer: int, mask: Mask, **more: Any) -> Site:
    return Site(layer, f"encoder.layer.{layer}.attention.", mask, "self", **more)


def _layers(prefix: str, *masks: Mask) -> tuple[Site, ...]:
    return tuple(Site(n, prefix.format(n), mask) for n, mask in enumerate(masks))


def _window(keys: int) -> Mask:
    """So many keys, the query's own counted."""
    return Causal() & SlidingWindow(keys - 1, 0)


def _again(length: int) -> Array:
    """BigBird without training: its one random block is the first, which middle queries so meet twice: ln 2."""
    first = np.arange(length) < 3
    middle = (np.arange(length) >= 3) & (np.arange(length) < length - 3)
    return np.where(middle[:, None] & first, np.log(2.0), 0.0).astype(np.float32)


_ENDS = np.arange(24) // 3
_BIG_BIRD = (BlockCausal(3).at(q_offset=3) & ~BlockCausal(3).at(q_offset=-6)) | Global((_ENDS == 0) | (_ENDS == 7))
_LLAMA = "layers.{}.self_attn."
_DEBERTA = {
    **_SQUARE,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "position_buckets": 6,
    "max_relative_positions": 11,
    "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm",
}
_T5_ENCODER, _T5_DECODER = "encoder.block.0.layer.0.SelfAttention.", "decoder.block.0.layer.{}."
_FALCON = {
    "vocab_size": 97,
    "num_hidden_layers": 2,
    "hidden_size": 60,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}

FAMILIES: dict[str, Family] = {
    "bert": Family("BertModel", _SQUARE, "hf-bert", "output.dense", (_bert(0, Full()), _bert(1, Full()))),
    "swinv2": Family(
        "Swinv2Model",
        {"image_size": 12, "patch_size": 2, "embed_dim": 22, "depths": [2], "num_heads": [2], "window_size": 3},
        "hf-swin-v2",
        "output.dense",
        tuple(
            Site(n, f"encoder.layers.0.blocks.{n}.attention.", mask, "self")
            for n, mask in enumerate((Full(), ShiftedWindow((6, 6), 3, 1)))
        ),
        "pixels",
        "",
    ),
    "beit": Family(
        "BeitModel",
        {
            "hidden_size": 35,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "intermediate_size": 37,
            "image_size": 12,
            "patch_size": 4,
            "use_relative_position_bias": True,
        },
        "hf-beit-memory",
        "attention.o_proj",
        tuple(Site(n, f"layers.{n}.", Full(), "attention") for n in (0, 1)),
        "pixels",
        "",
    ),
    "clip_text_model": Family(
        "CLIPTextModel",
        {**_SQUARE, "eos_token_id": 96, "bos_token_id": 1, "pad_token_id": 0},
        "hf-clip",
        "out_proj",
        _layers("encoder.layers.{}.self_attn.", Causal(), Causal()),
    ),
    "gpt_neox": Family(
        "GPTNeoXModel",
        {
            **_WORDS,
            "hidden_size": 42,
            "num_attention_heads": 3,
            "rope_parameters": {**_THETA, "partial_rotary_factor": 0.43},
        },
        "hf-neox",
        "dense",
        _layers("layers.{}.attention.", Causal(), Causal()),
        decodes=True,
    ),
    "bloom": Family(
        "BloomModel",
        {"vocab_size": 97, "hidden_size": 30, "n_layer": 2, "n_head": 6},
        "hf-neox",
        "dense",
        _layers("h.{}.self_attention.", Causal(), Causal()),
        decodes=True,
    ),
    "falcon": Family(
        "FalconModel",
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "rope_parameters": _THETA},
        "hf-neox",
        "dense",
        _layers("h.{}.self_attention.", Causal(), Causal()),
        decodes=True,
    ),
    "falcon, multi-query": Family(
        "FalconModel",
        {**_FALCON, "bias": True},
        "hf-neox",
        "dense",
        _layers("h.{}.self_attention.", Causal()),
        decodes=True,
    ),
    "falcon, ALiBi": Family(
        "FalconModel",
        {**_FALCON, "alibi": True, "multi_query": False, "bias": True},
        "hf-neox",
        "dense",
        _layers("h.{}.self_attention.", Causal()),
        decodes=True,
        reasons=dict.fromkeys(
            ("output", "mask", "gradients", "decoding"),
            "transformers' eager attention adds ALiBi twice, and in bfloat16",
        ),
    ),
    "mistral": Family(
        "MistralModel",
        {**_GROUPED, "sliding_window": 5, "rope_parameters": _THETA},
        "hf-llama",
        "o_proj",
        _layers(_LLAMA, _window(5), _window(5)),
        padding="left",
        decodes=True,
    ),
    "qwen3": Family(
        "Qwen3Model",
        {
            **_GROUPED,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "attention_bias": True,
            "rope_parameters": {**_THETA, "rope_type": "linear", "factor": 3.0},
        },
        "hf-llama",
        "o_proj",
        _layers(_LLAMA, Causal(), _window(4)),
        decodes=True,
    ),
    "gemma2": Family(
        "Gemma2Model",
        {
            **_GROUPED,
            "query_pre_attn_scalar": 23,
            "attn_logit_softcapping": 1.7,
            "sliding_window": 4,
            "rope_parameters": _THETA,
        },
        "hf-llama",
        "o_proj",
        _layers(_LLAMA, _window(4), Causal()),
        decodes=True,
    ),
    "gpt_oss": Family(
        "GptOssModel",
        {
            **_GROUPED,
            "intermediate_size": 28,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 50.0,
                "factor": 4.0,
                "beta_fast": 3.0,
                "beta_slow": 0.5,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
        "hf-llama",
        "o_proj",
        _layers(_LLAMA, _window(4), Causal()),
        decodes=True,
    ),
    "llama4_text": Family(
        "Llama4TextModel",
        {
            **_GROUPED,
            "intermediate_size_mlp": 37,
            "num_local_experts": 2,
            "moe_layers": [],
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 4,
            "floor_scale": 3,
            "attn_scale": 0.7,
            "rope_parameters": _THETA,
        },
        "hf-llama",
        "o_proj",
        _layers(_LLAMA, Causal() & Chunked(4), Causal()),
        decodes=True,
    ),
    "t5": Family(
        "T5Model",
        {
            "vocab_size": 97,
            "d_model": 33,
            "d_kv": 7,
            "d_ff": 37,
            "num_layers": 1,
            "num_decoder_layers": 1,
            "num_heads": 5,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 11,
        },
        "hf-t5",
        "o",
        (
            Site(0, _T5_ENCODER, Full(), part="encoder"),
            Site(0, _T5_DECODER.format(0) + "SelfAttention.", Causal(), part="decoder"),
            Site(0, _T5_DECODER.format(1) + "EncDecAttention.", Full(), part="cross"),
        ),
        "tokens, tokens",
        decodes=True,
    ),
    "deberta-v2": Family(
        "DebertaV2Model",
        {**_DEBERTA, "share_att_key": True},
        "hf-deberta",
        "output.dense",
        (_bert(0, Full()), _bert(1, Full())),
    ),
    "deberta-v2, positions apart": Family(
        "DebertaV2Model",
        {**_DEBERTA, "share_att_key": False, "position_buckets": -1},
        "hf-deberta",
        "output.dense",
        (_bert(0, Full()),),
    ),
    "longformer": Family(
        "LongformerModel",
        {**_SQUARE, "attention_window": [4, 6], "pad_token_id": 1},
        "hf-longformer",
        "output.dense",
        (_bert(0, SlidingWindow(2, 2)), _bert(1, SlidingWindow(3, 3))),
        length=24,
        globals=(0, 7),
    ),
    "big_bird": Family(
        "BigBirdModel",
        {**_SQUARE, "attention_type": "block_sparse", "block_size": 3, "num_random_blocks": 1},
        "hf-bert",
        "output.dense",
        (_bert(0, _BIG_BIRD, bias=_again), _bert(1, _BIG_BIRD, bias=_again)),
        length=24,
    ),
    "whisper": Family(
        "WhisperModel",
        {
            "vocab_size": 97,
            "num_mel_bins": 6,
            "d_model": 70,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 5,
            "decoder_attention_heads": 7,
            "encoder_ffn_dim": 37,
            "decoder_ffn_dim": 31,
            "max_source_positions": 11,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
        },
        "hf-whisper",
        "out_proj",
        (
            Site(0, "encoder.layers.0.self_attn.", Full(), part="encoder"),
            Site(0, "decoder.layers.0.self_attn.", Causal(), part="decoder"),
            Site(0, "decoder.layers.0.encoder_attn.", Full(), part="cross"),
        ),
        "sound",
        "",
        decodes=True,
    ),
}
