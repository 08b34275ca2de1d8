"""Hugging Face configurations read by key: objects or dicts, of transformers 4 and 5, without transformers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from maskattn._problems import show

T = TypeVar("T")

#: Parts of a configuration that are one themselves, by what they hold.
PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder")

#: What a configuration holds under a key: a number, a text, a list, a dict.
Value: TypeAlias = Any

_MISSING: Value = object()


@dataclass(frozen=True)
class Reading:
    """A configuration as one layer reads it.

    Attributes:
        config: a `PreTrainedConfig`, or the dict of a config.json.
        layer: which layer, from 0.
        where: what errors begin with.
    """

    config: object
    layer: int
    where: str

    @property
    def model_type(self) -> str:
        """The name that the configuration gives its model.

        Raises:
            TypeError: it is no configuration: it has none.
        """
        found = self.get("model_type", default=None)
        if not isinstance(found, str) or not found:
            raise TypeError(
                f"{self.where}: config must be a Hugging Face configuration, or the dict of its config.json, with a "
                f"model_type, got {show(self.config)}"
            )
        return found

    def get(self, *names: str, default: Value = _MISSING) -> Value:
        """What stands under the first of `names` that is there and not None, or the default.

        Raises:
            ValueError: nothing does, and there is no default.
        """
        for name in names:
            value = self.config.get(name) if isinstance(self.config, Mapping) else getattr(self.config, name, None)
            if value is not None:
                return value
        if default is _MISSING:
            raise ValueError(f"{self.where}: the configuration of {self.model_type!r} has no {' or '.join(names)}")
        return default

    def has(self, name: str) -> bool:
        """Whether the key is there, be it None."""
        return name in self.config if isinstance(self.config, Mapping) else hasattr(self.config, name)

    @property
    def architecture(self) -> str:
        """The class of transformers that it names first; "" where it names none."""
        classes = self.get("architectures", default=None)
        return str(classes[0]) if isinstance(classes, (list, tuple)) and classes else ""

    def each(self, *names: str, default: Value = _MISSING) -> Value:
        """As `get`; of a list, its place of this layer."""
        found = self.get(*names, default=default)
        if isinstance(found, (list, tuple)):
            if not 0 <= self.layer < len(found):
                raise ValueError(f"{self.where}: layer must be below {len(found)}, got {self.layer}")
            return found[self.layer]
        return found

    @property
    def kind(self) -> str:
        """What `layer_types` calls this layer; "" where there are none."""
        return str(self.each("layer_types", default=""))

    @property
    def named_kind(self) -> str:
        """As `kind`, of models whose layers differ.

        Raises:
            ValueError: the configuration has no `layer_types`, as files of transformers 4 may.
        """
        if not self.kind:
            raise ValueError(
                f"{self.where}: the configuration of {self.model_type!r} has no layer_types, by which its layers "
                "differ: give transformers' own configuration object, which fills them in"
            )
        return self.kind

    def table(self, *names: str) -> dict[str, Value]:
        """A dict that stands under one of `names`; empty where there is none.

        Raises:
            ValueError: something else does.
        """
        found = self.get(*names, default={})
        if not isinstance(found, Mapping):
            raise ValueError(f"{self.where}: {' or '.join(names)} must be a dict, got {show(found)}")
        return dict(found)

    def rope(self) -> dict[str, Value]:
        """Parameters of the rotary embedding of this layer, by the names of transformers 5: rope_theta, rope_type,
        partial_rotary_factor and those of the scaling. They stand in `rope_parameters`, for each type of layer or for
        all; before that, in `rope_scaling` and beside it.
        """
        found = self.table("rope_parameters") or self.table("rope_scaling")
        if any(isinstance(value, Mapping) for value in found.values()):
            if not isinstance(found.get(self.named_kind), Mapping):
                raise ValueError(f"{self.where}: rope_parameters has none for layers of type {self.kind!r}")
            # transformers looks for "truncate" outside of the kinds of layers, and finds none
            found = {name: value for name, value in found[self.kind].items() if name != "truncate"}
        if "type" in found:
            found.setdefault("rope_type", found.pop("type"))
        for name, others in _ROPE.items():
            value = self.get(name, *others, default=None)
            if value is not None:
                found.setdefault(name, value)
        return {name: value for name, value in found.items() if value is not None}


#: Where older configurations have what is now in `rope_parameters`.
_ROPE = {
    "rope_theta": ("rotary_emb_base", "rope_base"),
    "partial_rotary_factor": ("rotary_pct", "rope_pct"),
    "original_max_position_embeddings": (),
}


def row_of(reading: Reading, rows: Mapping[str, T], what: str) -> T:
    """The row of the configuration's model type.

    Raises:
        ValueError: there is none; names the nearest, or the part of the configuration that is meant.
    """
    name = reading.model_type
    if name in rows:
        return rows[name]
    inner = [f"config.{part}" for part in PARTS if reading.get(part, default=None) is not None]
    made = f", which is made of several models: give {' or '.join(inner)}" if inner else ""
    raise ValueError(f"{reading.where}: no {what} is known of model type {name!r}{made}; {nearest(name, rows)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the known names look like this one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(known)}"
