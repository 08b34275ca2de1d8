"""The head of a task, by a row and the class that a configuration names.

The keys of a row, {"layers", "read", "activation", "norm", "rate", "all", "bias", "flat", "marks"}, of
`models.tasks.Labels`:

sequence_head, token_head, answer_head, replaced_head
                 of models that label texts; tokens; where an answer begins and ends; which tokens were replaced.
                 "bias" False: the last layer has none, where no checkpoint says it; "bare": the layers before it.
                 "rate": of dropout before the last layer, or with "all" before each; None in place of a head: such
                 models are refused
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Protocol

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, Value
from maskattn.models.leaves import Leaf, Linear, Norm
from maskattn.models.sentences import KEY
from maskattn.models.tasks import Labels, Sentence


class _Builder(Protocol):
    @property
    def row(self) -> Row: ...
    @property
    def reading(self) -> Reading: ...
    @property
    def names(self) -> Container[str] | None: ...
    def get(self, name: str, default: Value = None) -> Value: ...
    def settle(self, spec: object) -> Value: ...
    def there(self, leaf: Leaf) -> bool: ...
    def norm(self, name: str | None, width: int | None = None) -> Norm | None: ...
    def activation_of(self, found: str) -> str: ...
    def labels(self) -> int: ...
    def pooler(self) -> object: ...


def _rate(reading: Reading) -> float:
    names = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout", "hidden_dropout")
    found = (reading.get(name, default=None) for name in (*names, "hidden_dropout_prob"))
    return next((float(rate) for rate in found if rate is not None), 0.1)


RATE = Merged(_rate)
#: The head of most models, by the key of a row.
HEADS: Mapping[str, Mapping[str, Value]] = {
    "sequence_head": {"layers": ("classifier",), "read": "pooled", "rate": RATE},
    "token_head": {"layers": ("classifier",), "rate": RATE},
    "answer_head": {"layers": ("qa_outputs",)},
}
#: Of classes of transformers, by the ends of their names.
TASKS: Mapping[str, str] = {
    "ForSequenceClassification": "sequence_head",
    "ForTokenClassification": "token_head",
    "ForQuestionAnswering": "answer_head",
    "ForPreTraining": "replaced_head",
}
#: Of classes without logits of the vocabulary.
LABELLED = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
#: The first token, through a layer.
FIRST: dict[str, Value] = {
    "layers": ("classifier.dense", "classifier.out_proj"),
    "read": "front",
    "activation": "tanh",
    "rate": RATE,
    "all": True,
}
#: Of decoders: the last token.
LAST: dict[str, Value] = {"layers": ("score",), "read": "text", "bias": False}
#: Of models with an encoder and a decoder: where the text ends.
END: dict[str, Value] = {
    **FIRST,
    "layers": ("classification_head.dense", "classification_head.out_proj"),
    "read": "end",
    "rate": Key("classifier_dropout", default=0.0),
}


def labels_of(builder: _Builder, width: int) -> Labels | None:
    """The head of a task, of vectors of this width; None where the model has none.

    Raises:
        ValueError: the class is known, and its head is not.
    """
    reading = builder.reading
    named = reading.architecture
    task = next((key for end, key in TASKS.items() if named.endswith(end)), None)
    if named and task is None:
        return None
    for key in dict.fromkeys(TASKS.values()) if task is None else (task,):
        known = key in builder.row
        given: Any = builder.get(key) if known else builder.settle(HEADS.get(key))
        if given is None and known and task is not None:
            raise ValueError(f"{reading.where}: {named} is refused: what its head computes is not known")
        made = None if given is None else _labels(builder, given, key, width)
        if made is not None and _fits(builder, made, given, asked=task is not None):
            return made
    return None


def _labels(builder: _Builder, given: Mapping[str, Any], key: str, width: int) -> Labels:
    *names, last = given["layers"]
    names_held = builder.names
    outputs = {"answer_head": 2, "replaced_head": 1}.get(key) or builder.labels()
    bias = given.get("bias", True) if names_held is None else f"{last}.bias" in names_held
    layers = [Linear(name, width, width, given.get("bare", True)) for name in names]
    rate, read = float(given.get("rate", 0.0)), given.get("read", "each")
    token = {"text": "pad_token_id", "end": "eos_token_id"}.get(read)
    marks = str(given.get("marks", ""))
    return Labels(
        (*layers, Linear(last, width, outputs, bias)),
        read,
        builder.activation_of(given.get("activation", "linear")),
        builder.norm(given.get("norm"), width),
        (*((rate if given.get("all", False) else 0.0) for _ in layers), rate),
        None if token is None else builder.reading.get(token, default=builder.get("pad" if read == "text" else "end")),
        bool(given.get("flat", False)),
        marks,
        builder.reading.get("sep_token_id", default=None) if marks == "question" else None,
    )


def _fits(builder: _Builder, made: Labels, given: Mapping[str, Any], asked: bool) -> bool:
    """Whether a checkpoint has a head, and, where no class is named, it is this and no other."""
    if builder.names is None:
        return asked
    if not all(builder.there(leaf) for _, leaf in made.leaves()):
        return False
    pooled = made.read != "pooled" or builder.pooler() is not None
    return asked or (pooled and made.layers[-1].bias == given.get("bias", True))


def sentence_of(reading: Reading) -> Sentence | None:
    """How a folder of sentence-transformers makes one vector of a text.

    Raises:
        ValueError: one of its modules, or what it takes the mean of, is not known.
    """
    modules: Any = reading.get(KEY, default=None)
    if not modules:
        return None
    read: tuple[str, ...] = ()
    normed = False
    for module, options in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling" and not read:
            read = _modes(reading, options)
        elif kind == "Normalize" and read:
            normed = True
        elif kind != "Transformer" or read:
            raise ValueError(
                f"{reading.where}: modules.json has a {kind}, and of sentence-transformers Transformer, Pooling and "
                "Normalize are known: a folder without modules.json is the model alone"
            )
    return Sentence(read, normed) if read else None


#: sentence-transformers' names -> ours, and the names of older files.
_MODES = {"cls": "first", "max": "max", "mean": "mean", "lasttoken": "last"}
_OLDER = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "lasttoken": "lasttoken"}
_UNKNOWN = ("mean_sqrt_len_tokens", "weightedmean_tokens")


def _modes(reading: Reading, options: Mapping[str, Any]) -> tuple[str, ...]:
    given: Any = options.get("pooling_mode")
    if given is None:
        older = {**_OLDER, **dict(zip(_UNKNOWN, _UNKNOWN, strict=True))}
        given = [mode for name, mode in older.items() if options.get(f"pooling_mode_{name}")] or "mean"
    modes = (given,) if isinstance(given, str) else tuple(given)
    if not set(modes) <= set(_MODES) or not options.get("include_prompt", True):
        raise ValueError(
            f"{reading.where}: pooling_mode of sentence-transformers must be of {', '.join(_MODES)}, with "
            f"include_prompt, got {', '.join(modes)}, include_prompt={options.get('include_prompt', True)}"
        )
    return tuple(_MODES[mode] for mode in modes)
