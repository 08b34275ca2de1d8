"""What a converted file remembers that its tensors do not show: heads, what stood before the names, and tensors that a
model computes when it is built, which are left out of a conversion and made again on the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from maskattn.convert._lazy import Lazy, constant
from maskattn.convert.families import Form

Array = np.ndarray[Any, Any]
LIMIT = 10**7


class Buffer(NamedTuple):
    """How a tensor is made: "arange" is 0, 1, 2, ... along the last axis."""

    maker: str
    shape: tuple[int, ...]
    dtype: str

    def make(self) -> Array:
        """The tensor."""
        return np.broadcast_to(np.arange(self.shape[-1], dtype=self.dtype), self.shape)


@dataclass(frozen=True)
class Remembered:
    """What was left out of a checkpoint of the family `family`, by its names there; a converted file says so."""

    family: str = ""
    tensors: Mapping[str, Buffer] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data, which ``recall`` reads."""
        tensors = {
            name: {"made": b.maker, "shape": list(b.shape), "dtype": b.dtype} for name, b in self.tensors.items()
        }
        return {"family": self.family, "tensors": tensors}

    def restore(self, written: dict[str, Lazy], form: Form) -> bool:
        """Adds to ``written`` what ``form`` is missing; whether this is the form they belong to."""
        if not self.tensors or form.layout is not None or form.family.name != self.family:
            return False
        for name, buffer in self.tensors.items():
            found = form.find(name)
            if found is not None and found[0].kind == "buffer":
                written.setdefault(name, constant(buffer.make()))
        return True


def recall(provenance: Mapping[str, Any]) -> Remembered:
    """What a file's provenance remembers; ValueError where it cannot be meant."""
    data = provenance.get("buffers")
    if not data:
        return Remembered()
    try:
        tensors = {
            str(name): Buffer(entry["made"], tuple(int(n) for n in entry["shape"]), str(np.dtype(entry["dtype"])))
            for name, entry in data["tensors"].items()
        }
        family = str(data["family"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"provenance: buffers cannot be read ({error!r})") from None
    for name, buffer in tensors.items():
        wild = not buffer.shape or min(buffer.shape) < 0 or math.prod(buffer.shape) > LIMIT
        if buffer.maker != "arange" or wild or np.dtype(buffer.dtype).kind not in "iu":
            raise ValueError(f"provenance: {name!r} cannot be made again: {buffer}")
    return Remembered(family, tensors)


def recall_heads(provenance: Mapping[str, Any]) -> dict[str, tuple[int | None, int | None]]:
    """Query and key/value heads of attention layers; ValueError where they cannot be meant."""
    data = provenance.get("heads") or {}
    if not isinstance(data, Mapping):
        raise ValueError(f"provenance: heads cannot be read, got {type(data).__name__}")
    heads: dict[str, tuple[int | None, int | None]] = {}
    for name, numbers in data.items():
        if not isinstance(numbers, list) or len(numbers) != 2 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError(f"provenance: the heads of {name!r} cannot be {numbers!r:.100}")
        heads[str(name)] = numbers[0], numbers[1]
    return heads


def recall_prefixes(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What stood before the names when the checkpoint was of a family."""
    data = provenance.get("prefixes") or {}
    if not isinstance(data, Mapping) or not all(isinstance(value, str) for value in data.values()):
        raise ValueError("provenance: prefixes cannot be read")
    return {str(name): value for name, value in data.items()}
