"""Tiny encoders of the kind of BERT."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_BERT = {**SIZES, "type_vocab_size": 3}
_ROBERTA = {**_BERT, "pad_token_id": 1}

ENCODERS: dict[str, Tiny] = {
    "bert": Tiny("BertForMaskedLM", _BERT, "types"),
    "bert+pooled": Tiny("BertModel", _BERT, "types"),
    "roberta": Tiny("RobertaForMaskedLM", _ROBERTA, "types"),
    "xlm-roberta": Tiny("XLMRobertaForMaskedLM", _ROBERTA, "types"),
    "camembert": Tiny("CamembertForMaskedLM", _ROBERTA, "types"),
    "distilbert": Tiny(
        "DistilBertForMaskedLM",
        {"vocab_size": 97, "dim": 48, "n_layers": 2, "n_heads": 6, "hidden_dim": 44, "max_position_embeddings": 64},
    ),
    "albert": Tiny(
        "AlbertForMaskedLM", {**_BERT, "embedding_size": 14, "num_hidden_groups": 2, "num_hidden_layers": 5}, "types"
    ),
    "electra": Tiny("ElectraForMaskedLM", {**_BERT, "embedding_size": 14}, "types"),
    "mpnet": Tiny("MPNetForMaskedLM", SIZES),
    "modernbert": Tiny(
        "ModernBertForMaskedLM", {**SIZES, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0}
    ),
    "nomic_bert": Tiny("NomicBertForMaskedLM", {**_BERT, "pad_token_id": 0}, "types"),
}
