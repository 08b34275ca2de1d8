"""Which model a checkpoint says that it is: by its config.json, by Meta's params.json, or by what we wrote in it.

All that is known of types of models is data, in ``model_types.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from maskattn.convert import config_json, families, layouts
from maskattn.convert._provenance import Recorded
from maskattn.convert.families import Family, Form

#: What follows the name of a model in that of a class of transformers.
_TASK = re.compile(r"(For[A-Z]\w*|(LMHead|DoubleHeads|PreTrained|Encoder)?Model)$")


@dataclass(frozen=True)
class Identity:
    """A type of model; the fields are told in ``model_types.toml``."""

    model_type: str
    families: tuple[str, ...] = ()
    like: str = ""
    differs: str = ""
    tied: bool = False
    head_dim: int | None = None


@dataclass(frozen=True)
class Said:
    """What a checkpoint says of its model: ``model_type``, empty where nothing is said, and by which file.

    ``contradiction``: what else the same file says.
    """

    model_type: str = ""
    by: str = ""
    contradiction: str = ""

    @property
    def known(self) -> Identity | None:
        """What the table knows of it."""
        return table().get(self.model_type)

    @property
    def families(self) -> tuple[str, ...]:
        """The families that such a model is stored in."""
        return self.known.families if self.known else ()

    def foreign(self, family: Family) -> bool:
        """Whether it says that it is another model than that of ``family``, one of the library's."""
        return bool(self.model_type) and family.model not in {families.get(name).model for name in self.families}

    def __str__(self) -> str:
        return f"{self.by} says model_type {self.model_type}"

    @property
    def differs(self) -> str:
        """How its model differs from that of the family whose names it has."""
        known = self.known
        if known is None:
            near, asks, _ = layouts.meant(self.model_type, table()).partition("?")
            return "no family here describes it" + (f" ({near.removeprefix(': ')}?)" if asks else "")
        return "no family here describes it" + (f": {known.differs}" if known.differs else "")


class About(NamedTuple):
    """What is known of a checkpoint beside its tensors.

    Attributes:
      config: its config.json. said: the model it says it is. recorded: the form that its provenance says.
      own: a family given by the user. outer: what stands before all names and is to be taken off.
      force: whether what it says of itself may be contradicted.
    """

    config: Mapping[str, object]
    said: Said = Said()
    recorded: Recorded | None = None
    own: Family | None = None
    outer: str = ""
    force: bool = False

    @property
    def known(self) -> dict[str, Family]:
        """The library's families and the user's own, by name."""
        known = {each.name: each for each in families.all_families()}
        return known | ({self.own.name: self.own} if self.own else {})

    def forms(self, among: Iterable[Family]) -> list[Form]:
        """All forms of these families, with what stands before the names."""
        return [form for family in among for form in families.forms(family, self.outer)]


@lru_cache(maxsize=1)
def table() -> Mapping[str, Identity]:
    """All types of models that are known, by what a config.json calls them."""
    data = tomllib.loads(Path(__file__).with_name("model_types.toml").read_text(encoding="utf-8"))
    return {
        name: Identity(name, **(line | {"families": tuple(line.get("families", ()))})) for name, line in data.items()
    }


def said(model_config: Mapping[str, object], provenance: Mapping[str, object]) -> Said:
    """What a checkpoint says: what was written in it when it was converted, before what a file beside it says."""
    recorded = provenance.get("model_type")
    if isinstance(recorded, str):
        return Said(recorded, "its provenance" if recorded else "")
    told, classes = model_config.get("model_type"), model_config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    of_class = next((model_type for model_type in map(_type_of, named) if model_type), "")
    if isinstance(told, str) and told:
        apart = of_class and told in table() and _apart(table()[told], table()[of_class])
        other = f"model_type {told}, but architectures of {of_class}" if apart else ""
        return Said(told, "config.json", other)
    if named:  # a class that the table does not have says that it is something else than those it has
        return Said(of_class or _plain_class(named[0]), "config.json (architectures)")
    return Said("llama", "params.json") if config_json.is_params(model_config) else Said()


def lookalikes(family: Family) -> list[str]:
    """Types of models without a family whose names are those of ``family``, or nearly."""
    return [name for name, identity in table().items() if identity.like == family.name]


def tied(model_config: Mapping[str, object], who: Said) -> bool:
    """Whether a configuration says that the head is the embedding; False where nothing says so."""
    told: Any = config_json.look_up(model_config, "tie_word_embeddings|text_config.tie_word_embeddings")
    if isinstance(told, bool):
        return told
    return bool(model_config) and who.known is not None and who.known.tied


def _type_of(class_name: object) -> str:
    """The type of model that a class of transformers is of; empty where the table has none."""
    plain = re.sub(r"[^a-z0-9]", "", _plain_class(class_name))
    return next((name for name in table() if re.sub(r"[^a-z0-9]", "", name.lower()) == plain), "")


def _plain_class(class_name: object) -> str:
    """The name of a class without its task."""
    return _TASK.sub("", str(class_name)).lower() or str(class_name)


def _apart(one: Identity, other: Identity) -> bool:
    """Whether these are types of different models; clip_text_model is a part of clip."""
    part = one.model_type.startswith(other.model_type) or other.model_type.startswith(one.model_type)
    return not part and not set(one.families) & set(other.families)
