"""Tiny encoders of BERT's kind with something of their own."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_BERT = {**SIZES, "type_vocab_size": 3}
_ESM = {**SIZES, "pad_token_id": 1, "mask_token_id": 9, "vocab_size": 97}
_DEBERTA = {
    **SIZES,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 8,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "conv_kernel_size": 3,
}
_BIGBIRD = {**_BERT, "block_size": 4, "num_random_blocks": 2, "max_position_embeddings": 128, "pad_token_id": 0}
_LONGFORMER = {**_BERT, "attention_window": [4, 8], "pad_token_id": 1}
_MARKED = {"global_attention_mask": [[1] + [0] * 13, [0] * 4 + [1] + [0] * 4 + [1] + [0] * 4]}

FURTHER: dict[str, Tiny] = {
    "esm": Tiny(
        "EsmForMaskedLM",
        {**_ESM, "position_embedding_type": "rotary", "token_dropout": True, "emb_layer_norm_before": True},
        length=33,
    ),
    "esm+absolute": Tiny("EsmModel", _ESM),
    "deberta-v2": Tiny("DebertaV2ForMaskedLM", _DEBERTA),
    "deberta-v2+separate": Tiny(
        "DebertaV2ForMaskedLM",
        {
            **_DEBERTA,
            "embedding_size": 14,
            "type_vocab_size": 3,
            "position_biased_input": True,
            "position_buckets": -1,
            "max_relative_positions": 9,
            "norm_rel_ebd": "none",
            "share_att_key": False,
            "conv_act": "gelu",
            "conv_groups": 2,
        },
        "types",
    ),
    "deberta-v2+plain": Tiny(
        "DebertaV2ForMaskedLM",
        {**_DEBERTA, "pos_att_type": "p2c", "share_att_key": False, "conv_kernel_size": 0, "legacy": False},
    ),
    "deberta-v2+absolute": Tiny("DebertaV2Model", {**SIZES, "type_vocab_size": 0}),
    "big_bird": Tiny("BigBirdForMaskedLM", _BIGBIRD, "types"),
    "big_bird+sparse": Tiny("BigBirdModel", {**_BIGBIRD, "rescale_embeddings": True, "use_bias": False}, length=50),
    "big_bird+full": Tiny("BigBirdForMaskedLM", {**_BIGBIRD, "attention_type": "original_full"}, length=50),
    "longformer": Tiny("LongformerForMaskedLM", _LONGFORMER, "types"),
    "longformer+global": Tiny("LongformerModel", _LONGFORMER, "types", options=_MARKED),
}
