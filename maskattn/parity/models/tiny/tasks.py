"""Tiny models that were trained for a task: one for each way of making logits of labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from maskattn.parity.models.tiny._tiny import Tiny
from maskattn.parity.models.tiny.decoders import DECODERS
from maskattn.parity.models.tiny.encoder_decoders import ENCODER_DECODERS
from maskattn.parity.models.tiny.encoders import ENCODERS
from maskattn.parity.models.tiny.experts import EXPERTS
from maskattn.parity.models.tiny.further import FURTHER
from maskattn.parity.models.tiny.gpt import GPT

_TINY = {**ENCODERS, **FURTHER, **ENCODER_DECODERS, **GPT, **DECODERS, **EXPERTS}
#: Ends of texts, and what stands between a question and what is asked.
END, SEPARATOR = 5, 6


def texts(length: int) -> list[list[int]]:
    """Two texts of tokens, with separators at the same number of places, and one end."""
    first, second = ([7 + (n * step) % 80 for n in range(length)] for step in (11, 17))
    for ids, places in ((first, (3, 7, 11)), (second, (4, 6, 9))):
        for place in places:
            ids[place] = SEPARATOR
    first[12], second[10] = END, END
    return [first, second]


def of(kind: str, model: str, given: bool = False, **more: Any) -> Tiny:
    """A row with a class of transformers and three labels, or 2 where an answer begins and ends.

    Args:
        given: whether its texts are `texts`, of an encoder those that its decoder begins with.
    """
    tiny = _TINY[kind]
    labels = 2 if model.endswith("Answering") else 3
    config = {"num_labels": labels, "eos_token_id": END, "sep_token_id": SEPARATOR, **more}
    made = replace(tiny, model=model, config={"pad_token_id": 0, **tiny.config, **config}, options={})
    return replace(made, options={"input_ids": texts(tiny.length)}, inputs="tokens") if given else made


TASKS: dict[str, Tiny] = {
    "bert+sequence": of("bert", "BertForSequenceClassification"),
    "bert+tokens": of("bert", "BertForTokenClassification"),
    "bert+answers": of("bert", "BertForQuestionAnswering"),
    "roberta+sequence": of("roberta", "RobertaForSequenceClassification"),
    "electra+replaced": of("electra", "ElectraForPreTraining"),
    "modernbert+sequence": of("modernbert", "ModernBertForSequenceClassification", classifier_pooling="mean"),
    "longformer+sequence": replace(of("longformer", "LongformerForSequenceClassification"), padding=("right",)),
    "longformer+answers": of("longformer", "LongformerForQuestionAnswering", given=True),
    "llama+sequence": of("llama", "LlamaForSequenceClassification"),
    "llama+answers": of("llama", "LlamaForQuestionAnswering"),
    "opt+sequence": of("opt", "OPTForSequenceClassification"),
    "bart+sequence": of("bart", "BartForSequenceClassification", given=True),
    "t5+tokens": replace(of("t5", "T5ForTokenClassification"), inputs="tokens"),
}
