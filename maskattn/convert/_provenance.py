"""What a converted file says of itself that its tensors do not show: heads, what stood before the names, and buffers
that were left out and are made again on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.convert._model import Heads

LIMIT = 10**7
Buffers = Mapping[str, Mapping[str, TensorInfo]]
"""By the name of a family: what was left out of a checkpoint of it, by the names there."""


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
        if entries[name][0] != "arange" or wild or dtype.kind not in "iu":
            raise ValueError(f"provenance: {name!r} cannot be made again: {entries[name]!r:.200}")
    return {family: infos} if infos else {}


def buffers_as_json(left_out: Buffers) -> dict[str, Any]:
    """Plain data, which ``buffers`` reads."""
    for family, infos in left_out.items():
        tensors = {n: {"made": "arange", "shape": list(i.shape), "dtype": i.dtype.name} for n, i in infos.items()}
        return {"family": family, "tensors": tensors}
    return {"family": "", "tensors": {}}


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
