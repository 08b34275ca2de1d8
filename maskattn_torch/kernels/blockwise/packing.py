"""Masks, biases and dropout on their way through an operator: tensors, and a number for all the rest.

An operator takes tensors and plain numbers. What a mask is besides its tensors (its class, its static fields, its
parts) is hashable: each such structure gets a number when it is first seen, and keeps it while the process lives, since
compiled graphs hold it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor as Array

from maskattn._fields import Spec
from maskattn.attention import Dropout

_NUMBERS: dict[Hashable, int] = {}
_STRUCTURES: list[Any] = []


def pack(*nodes: Spec | Dropout[Array] | None) -> tuple[int, list[Array]]:
    """The number of the structure of `nodes` (masks, biases, Dropout or None), and their tensors."""
    leaves: list[Array] = []
    structure = tuple(structure_of(node, leaves) for node in nodes)
    return _number(structure), leaves


def unpack(number: int, leaves: list[Array]) -> list[Any]:
    """The nodes that were packed, with these tensors."""
    remaining = iter(leaves)
    return [_rebuilt(structure, remaining) for structure in _STRUCTURES[number]]


def structure_of(node: Spec | Dropout[Array] | None, leaves: list[Array]) -> Hashable:
    """What `node` is besides its arrays, hashable; its arrays are appended to `leaves`."""
    if node is None:
        return None
    if isinstance(node, Dropout):
        leaves.append(node.words)
        return (Dropout, node.rate, tuple(node.shared))
    parts, rest = node.flatten()
    count = len(node.data_fields())
    leaves.extend(parts[:count])
    return (type(node), rest, count, tuple(structure_of(part, leaves) for part in parts[count:]))


@torch.compiler.assume_constant_result
def _number(structure: Hashable) -> int:
    if structure not in _NUMBERS:
        _NUMBERS[structure] = len(_STRUCTURES)
        _STRUCTURES.append(structure)
    return _NUMBERS[structure]


def _rebuilt(structure: Any, leaves: Iterator[Array]) -> Any:
    if structure is None:
        return None
    if structure[0] is Dropout:
        return Dropout(structure[1], next(leaves), structure[2])
    cls, rest, count, parts = structure
    own = [next(leaves) for _ in range(count)]
    made: Spec = cls.unflatten(rest, own + [_rebuilt(part, leaves) for part in parts])
    return made
