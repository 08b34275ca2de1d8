"""What a converted file says of itself that its tensors do not show: its form and that of the first source, heads, what
stood before the names, and what was left out or made on the way and is undone on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.convert._model import Heads
from maskattn.typing import NumPyDType

LIMIT = 10**7
Buffers = Mapping[str, Mapping[str, TensorInfo]]
"""By the name of a family: what was left out of a checkpoint of it, by the names there."""


class Recorded(NamedTuple):
    """A form as a file says it: the name of a family (or of a layout, where only attention is known), the layout of its
    attention where it is not the family's own, whether layers are stacked. ``whole``: whether it is a family's; None
    where the file does not say.
    """

    name: str
    layout: str | None
    scan: bool
    whole: bool | None

    def __str__(self) -> str:
        return self.name + (f" as {self.layout}" if self.layout else "") + (", layers stacked" if self.scan else "")


class Spelling(NamedTuple):
    """How a checkpoint of a family had its names; the fields are those of a ``Form``."""

    outer: str = ""
    old_norms: bool = False


_STACKED = ", layers stacked"


def recorded(provenance: Mapping[str, Any]) -> Recorded | None:
    """The form that the file is in; None where it does not say."""
    return _form(provenance.get("target"))


def origin(provenance: Mapping[str, Any]) -> Recorded | None:
    """The form of the very first source."""
    found, source = None, provenance.get("source")
    while isinstance(source, Mapping):
        found = _form(source) or found
        before = source.get("provenance")
        source = before.get("source") if isinstance(before, Mapping) else None
    return found


def _form(entry: object) -> Recorded | None:
    text = entry.get("form") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(text, str) or not text:
        return None
    name, _, layout = text.removesuffix(_STACKED).partition(" as ")
    whole = entry.get("whole")
    return Recorded(name, layout or None, text.endswith(_STACKED), whole if isinstance(whole, bool) else None)


def buffers(provenance: Mapping[str, Any]) -> Buffers:
    """What was left out, if anything; ValueError where it cannot be meant."""
    told = provenance.get("buffers")
    if not told:
        return {}
    try:
        entries = {str(n): (entry["made"], entry["shape"], entry["dtype"]) for n, entry in told["tensors"].items()}
        infos = {n: TensorInfo(tuple(map(int, shape)), np.dtype(dtype)) for n, (_, shape, dtype) in entries.items()}
        family = str(told["family"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"provenance: buffers cannot be read ({error!r})") from None
    for name, (shape, dtype) in infos.items():
        wild = not shape or min(shape) < 0 or math.prod(shape) > LIMIT
        if entries[name][0] != _maker(dtype) or wild or dtype.kind not in "iufV":
            raise ValueError(f"provenance: {name!r} cannot be made again: {entries[name]!r:.200}")
    return {family: infos} if infos else {}


def buffers_as_json(left_out: Buffers) -> dict[str, Any]:
    """Plain data, which ``buffers`` reads."""
    for family, infos in left_out.items():
        tensors = {
            name: {"made": _maker(info.dtype), "shape": list(info.shape), "dtype": info.dtype.name}
            for name, info in infos.items()
        }
        return {"family": family, "tensors": tensors}
    return {"family": "", "tensors": {}}


def _maker(dtype: NumPyDType) -> str:
    return "arange" if dtype.kind in "iu" else "shifted-windows"


def heads(provenance: Mapping[str, object]) -> dict[str, Heads]:
    """Query and key/value heads of attention layers; ValueError where they cannot be meant."""
    told = provenance.get("heads") or {}
    if not isinstance(told, Mapping):
        raise ValueError(f"provenance: heads cannot be read, got {type(told).__name__}")
    by_layer: dict[str, Heads] = {}
    for name, numbers in told.items():
        if not isinstance(numbers, list) or len(numbers) != 2 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError(f"provenance: the heads of {name!r} cannot be {numbers!r:.100}")
        by_layer[str(name)] = numbers[0], numbers[1]
    return by_layer


def prefixes(provenance: Mapping[str, object]) -> dict[str, str]:
    """What stood before the names when the checkpoint was of a family."""
    told = provenance.get("prefixes") or {}
    if not isinstance(told, Mapping) or not all(isinstance(value, str) for value in told.values()):
        raise ValueError("provenance: prefixes cannot be read")
    return {str(name): value for name, value in told.items()}


def spellings(provenance: Mapping[str, object]) -> dict[str, Spelling]:
    """How names were spelled when the checkpoint was of a family."""
    told = provenance.get("spellings") or {}
    try:
        return {str(name): Spelling(str(outer), bool(old)) for name, (outer, old) in told.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"provenance: spellings cannot be read ({error!r})") from None


def unwrapped(provenance: Mapping[str, object]) -> dict[str, object]:
    """The same without what wrappers had put before the names, and was taken off: a model of its own has none of it."""
    told = {name: ["", spelling.old_norms] for name, spelling in spellings(provenance).items()}
    return {**provenance, "spellings": told}


def names(provenance: Mapping[str, object], key: str) -> tuple[str, ...]:
    """A list of names: ``kept``, tensors that no rule knew."""
    told = provenance.get(key) or []
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        raise ValueError(f"provenance: {key} cannot be read")
    return tuple(told)


def tied(provenance: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """By family: the heads that were made of its embedding."""
    told = provenance.get("tied") or {}
    if not isinstance(told, Mapping) or not all(isinstance(made, list) for made in told.values()):
        raise ValueError("provenance: tied cannot be read")
    return {str(family): tuple(map(str, made)) for family, made in told.items()}


def config(provenance: Mapping[str, object]) -> dict[str, Any]:
    """The configuration that the source had, as far as it is kept."""
    told = provenance.get("config") or {}
    if not isinstance(told, Mapping):
        raise ValueError(f"provenance: config cannot be read, got {type(told).__name__}")
    return dict(told)


def config_as_json(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a configuration: plain data, and not the names of labels, which may be many."""
    long = ("id2label", "label2id", "task_specific_params", "quantization_config")
    return {name: value for name, value in model_config.items() if name not in long and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))
