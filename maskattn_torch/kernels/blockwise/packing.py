"""Masks, biases and dropout on their way through an operator: tensors, and a text for all the rest.

An operator takes tensors, numbers and texts. What a mask is besides its tensors (its class, its static fields, its
parts) is hashable, and is written as JSON when it is first seen: a graph that leaves its process, as an exported
program does, holds the text and means the same everywhere. Ints that a compiler leaves open are tensors on the way.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor as Array

from maskattn._fields import Spec, on_subclass
from maskattn.attention import Dropout
from maskattn_torch._symbolic import is_open, may_be_open

_TEXTS: dict[Hashable, str] = {}
_STRUCTURES: dict[str, Any] = {}
_CLASSES: dict[str, type[Spec]] = {}
_PROCESS = uuid.uuid4().hex


class Open:
    """Where an int stood that a compiler leaves open."""


def pack(*nodes: Spec | Dropout[Array] | None) -> tuple[str, list[Array]]:
    """The structure of `nodes` (masks, biases, Dropout or None) as a text, and their tensors, those of ints first."""
    leaves: list[Array] = []
    structure: tuple[Any, ...] = tuple([structure_of(node, leaves) for node in nodes])
    if may_be_open():
        numbers: list[Array] = []
        structure = tuple([_closed(part, numbers) for part in structure])
        leaves = numbers + leaves
    return _text(structure), leaves


def unpack(text: str, leaves: list[Array]) -> list[Any]:
    """The nodes that were packed, with these tensors."""
    if text not in _STRUCTURES:
        _STRUCTURES[text] = _read(text)
        _TEXTS.setdefault(_STRUCTURES[text], text)
    remaining, structures = iter(leaves), _STRUCTURES[text]
    if '"open"' in text:
        structures = [_filled(structure, remaining) for structure in structures]
    return [_rebuilt(structure, remaining) for structure in structures]


def structure_of(node: Spec | Dropout[Array] | None, leaves: list[Array]) -> Any:
    """What `node` is besides its arrays, hashable; its arrays are appended to `leaves`."""
    if node is None:
        return None
    if isinstance(node, Dropout):
        leaves.append(node.words)
        return (Dropout, node.rate, tuple(node.shared), node.within)
    parts, rest = node.flatten()
    count = len(node.data_fields())
    leaves.extend(parts[:count])
    return (type(node), rest, count, tuple([structure_of(part, leaves) for part in parts[count:]]))


def _closed(structure: Any, numbers: list[Array]) -> Any:
    """The structure with `Open` for ints that are open, which are appended to `numbers`."""
    if structure is None or structure[0] is Dropout:
        return structure
    cls, (keys, rest), count, parts = structure
    fields = tuple([(name, _taken(value, numbers)) for name, value in rest])
    return (cls, (keys, fields), count, tuple([_closed(part, numbers) for part in parts]))


def _taken(value: Any, numbers: list[Array]) -> Any:
    if isinstance(value, tuple):
        return tuple([_taken(entry, numbers) for entry in value])
    if not is_open(value):
        return value
    numbers.append(torch.scalar_tensor(value, dtype=torch.int64))
    return Open


def _filled(structure: Any, numbers: Iterator[Array]) -> Any:
    """The structure with the ints that were taken out of it."""
    if structure is None or structure[0] is Dropout:
        return structure
    cls, (keys, rest), count, parts = structure
    fields = tuple((name, _given(value, numbers)) for name, value in rest)
    return (cls, (keys, fields), count, tuple(_filled(part, numbers) for part in parts))


def _given(value: Any, numbers: Iterator[Array]) -> Any:
    if isinstance(value, tuple):
        return tuple(_given(entry, numbers) for entry in value)
    return int(next(numbers)) if value is Open else value


@torch.compiler.assume_constant_result
def _text(structure: Hashable) -> str:
    if structure not in _TEXTS:
        text = _written(structure)
        _TEXTS[structure], _STRUCTURES[text] = text, structure
    return _TEXTS[structure]


def _written(structure: Any) -> str:
    """JSON; where that would not give `structure` again, a text that no other process has."""
    why = "its static fields are not plain numbers, texts and tuples, or another class has its name"
    try:
        text = json.dumps(structure, default=_name)
        if (_STRUCTURES[text] if text in _STRUCTURES else _read(text)) == structure:
            return text
    except (TypeError, ValueError) as error:
        why = str(error)
    if torch.compiler.is_exporting():
        raise ValueError(
            f"a mask or bias cannot leave this process, and so cannot be exported: {why}. It is {structure}"
        )
    return f"structure {len(_STRUCTURES)} of process {_PROCESS}: {structure}"


def _name(cls: Any) -> Any:
    if cls is Open:
        return {"open": "int"}
    if not isinstance(cls, type):
        raise TypeError(f"{cls!r} cannot be written")
    return "Dropout" if cls is Dropout else f"{cls.__module__}.{cls.__qualname__}"


def _read(text: str) -> Any:
    try:
        return tuple(_structure(node) for node in json.loads(text))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"this program's mask or bias cannot be made in this process: {error}. A class of your own must be "
            f"imported before, under the name that it had, and have plain static fields. It is {text}"
        ) from error


def _structure(node: Any) -> Any:
    if node is None:
        return None
    name, first, second, *parts = node
    if name == "Dropout":  # programs that were exported before say nothing of a whole
        return (Dropout, first, _frozen(second), _frozen(parts[0]) if parts else None)
    if name not in _CLASSES:
        raise ValueError(f"no class {name} is known")
    cls, (keys, rest) = _CLASSES[name], _frozen(first)
    had, has = {key for key, _ in (*keys, *rest)}, {field.name for field in dataclasses.fields(cls)}
    if had != has:
        raise ValueError(f"{name} has the fields {sorted(has)} here, and had {sorted(had)}")
    return (cls, (keys, rest), second, tuple(_structure(part) for part in parts[0]))


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return Open
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value


def _rebuilt(structure: Any, leaves: Iterator[Array]) -> Any:
    if structure is None:
        return None
    if structure[0] is Dropout:
        return Dropout(structure[1], next(leaves), *structure[2:])
    cls, rest, count, parts = structure
    own = [next(leaves) for _ in range(count)]
    made: Spec = cls.unflatten(rest, own + [_rebuilt(part, leaves) for part in parts])
    return made


def _remember(cls: type[Spec]) -> None:
    _CLASSES[_name(cls)] = cls


on_subclass(_remember)
