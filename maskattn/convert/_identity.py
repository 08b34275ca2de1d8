"""Which model a checkpoint says that it is: by its config.json, by Meta's params.json, or by what we wrote in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from maskattn._hf_config import Reading
from maskattn.convert import config_json, families
from maskattn.convert._provenance import Recorded
from maskattn.convert.families import Family, Form
from maskattn.layer.from_hf import settled
from maskattn.models import ROWS

#: What follows the name of a model in that of a class of transformers.
_TASK = re.compile(r"(For[A-Z]\w*|(LMHead|DoubleHeads|PreTrained|Encoder)?Model)$")


@dataclass(frozen=True)
class Said:
    """What a checkpoint says of its model: ``model_type``, empty where nothing is said, and by which file.

    ``contradiction``: what else the same file says.
    """

    model_type: str = ""
    by: str = ""
    contradiction: str = ""

    @property
    def families(self) -> tuple[str, ...]:
        """The families that such a model is stored in."""
        return families.of_type(self.model_type)

    def foreign(self, family: Family) -> bool:
        """Whether it says that it is another model than that of ``family``, one of the library's."""
        return bool(self.model_type) and family.model not in map(families.model_of, self.families)

    def __str__(self) -> str:
        return f"{self.by} says model_type {self.model_type}"


class Known(Mapping[str, Family]):
    """The library's families and the user's own, by name, as a configuration says what they hold."""

    def __init__(self, config: Mapping[str, Any], own: Family | None = None) -> None:
        self._config, self._made = config, {own.name: own} if own else {}
        self._names = tuple(dict.fromkeys((*self._made, *families.names())))

    def __getitem__(self, name: str) -> Family:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = families.get(name, self._config)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class About(NamedTuple):
    """What is known of a checkpoint beside its tensors.

    Attributes:
      config: its config.json. said: the model it says it is. recorded: the form that its provenance says.
      known: all families, by name.
      own: a family given by the user. outer: what stands before all names and is to be taken off.
      force: whether what it says of itself may be contradicted.
    """

    config: Mapping[str, object]
    said: Said = Said()
    recorded: Recorded | None = None
    known: Mapping[str, Family] = {}
    own: Family | None = None
    outer: str = ""
    force: bool = False

    @property
    def told(self) -> list[Family]:
        """The families of its type, or where that is not known all that names alone tell."""
        return [self.known[name] for name in self.said.families] or self.every

    @property
    def every(self) -> list[Family]:
        """The families that names alone tell."""
        own = [] if self.own is None else [self.own]
        return own + [self.known[family.name] for family in families.all_families()]

    def forms(self, among: Iterable[Family]) -> list[Form]:
        """All forms of these families, with what stands before the names."""
        return [form for family in among for form in families.forms(family, self.outer)]


def said(model_config: Mapping[str, object], provenance: Mapping[str, object]) -> Said:
    """What a checkpoint says: what was written in it when it was converted, before what a file beside it says."""
    recorded = provenance.get("model_type")
    if isinstance(recorded, str):
        return Said(recorded, "its provenance" if recorded else "")
    told, classes = model_config.get("model_type"), model_config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    of_class = next((model_type for model_type in map(_type_of, named) if model_type), "")
    if isinstance(told, str) and told:
        apart = of_class and told in families.types() and _apart(told, of_class)
        other = f"model_type {told}, but architectures of {of_class}" if apart else ""
        return Said(told, "config.json", other)
    if named:  # a class that the table does not have says that it is something else than those it has
        return Said(of_class or _plain_class(named[0]), "config.json (architectures)")
    return Said("llama", "params.json") if config_json.is_params(model_config) else Said()


def lookalikes(family: Family) -> list[str]:
    """Types of other models whose names are those of ``family``, or nearly."""
    rows = [ROWS[name] for name in family.model_types if name in ROWS]
    alike = [(row.get("table"), row.get("layers"), row.get("attention")) for row in rows]
    named = {name: (row.get("table"), row.get("layers"), row.get("attention")) for name, row in ROWS.items()}
    return [name for name, names in named.items() if names in alike and name not in family.model_types]


def tied(model_config: Mapping[str, object], who: Said) -> bool:
    """Whether a configuration says that the head is the embedding; False where nothing says so."""
    told: Any = config_json.look_up(model_config, "tie_word_embeddings|text_config.tie_word_embeddings")
    if isinstance(told, bool) or not model_config or who.model_type not in ROWS:
        return told is True
    return bool(settled(ROWS[who.model_type].get("tied", False), Reading(model_config, 0, "convert"), "decoder"))


def _type_of(class_name: object) -> str:
    """The type of model that a class of transformers is of; empty where the table has none."""
    plain = re.sub(r"[^a-z0-9]", "", _plain_class(class_name))
    return next((name for name in families.types() if re.sub(r"[^a-z0-9]", "", name.lower()) == plain), "")


def _plain_class(class_name: object) -> str:
    """The name of a class without its task."""
    return _TASK.sub("", str(class_name)).lower() or str(class_name)


def _apart(one: str, other: str) -> bool:
    """Whether these are types of different models; clip_text_model is a part of clip."""
    part = one.startswith(other) or other.startswith(one)
    return not part and not set(families.of_type(one)) & set(families.of_type(other))
