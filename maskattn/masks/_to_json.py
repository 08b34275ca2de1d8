"""Masks written as JSON, for `mask.to_json()`; json.py says what a document is, and reads it."""

from __future__ import annotations

import binascii
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn._fields import Spec, dtype_name, to_numpy

VERSION = 1
#: What data may be written in, as text too.
DTYPES = {name: np.dtype(name) for name in ("bool", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))}
LIMIT = 1 << 63  # of integers


def to_json(mask: Spec, library: Mapping[str, type[Spec]]) -> str:
    """The text of `Mask.to_json`; `library` has the classes whose names no other class may have."""
    return json.dumps({"maskattn": VERSION, "mask": _write(mask, library)})


def given(cls: type[Spec]) -> tuple[str, ...]:
    """The fields that the constructor takes; others follow from them."""
    return tuple(field.name for field in dataclasses.fields(cls) if field.init)


def _write(mask: Spec, library: Mapping[str, type[Spec]]) -> dict[str, Any]:
    cls = type(mask)
    if library.get(cls.__name__, cls) is not cls:
        raise ValueError(f"to_json: {cls.__module__}.{cls.__qualname__} has the name of one of the library's masks")

    def plain(value: object, where: str) -> Any:
        if isinstance(value, Spec):
            return _write(value, library)
        if isinstance(value, (tuple, list)):
            return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
        if isinstance(value, int) and not -LIMIT <= value < LIMIT:
            raise ValueError(f"to_json: {where} must fit in 64 bits, got {value}")
        if value is None or isinstance(value, int):
            return value
        kind = type(value).__name__
        raise ValueError(f"to_json: {where} must be an int, a bool, None, or a tuple of them, got {kind}")

    fields = {}
    for name in given(cls):
        value, where = getattr(mask, name), f"{cls.__name__}.{name}"
        fields[name] = _array(value, where) if name in mask.data_fields() else plain(value, where)
    return {cls.__name__: fields}


def _array(value: Any, where: str) -> dict[str, Any]:
    if dtype_name(value) not in DTYPES:
        raise ValueError(f"to_json: {where} must be bool or an integer array, got dtype {dtype_name(value)}")
    try:
        array = to_numpy(value)
    except Exception as error:  # every framework refuses to read a traced array with an exception of its own
        raise ValueError(f"to_json: {where} cannot be read here: {str(error).splitlines()[0]}") from error
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    text = binascii.b2a_base64(data, newline=False).decode()
    return {"dtype": dtype_name(value), "shape": list(array.shape), "base64": text}
