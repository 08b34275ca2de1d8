"""Tables that a model computes when it is built: left out of other forms, and kept for the way back.

They are the same in every layer and compress well (a causal mask of a thousand positions to some thousand bytes), so
that what a converted file says of itself has room for their very bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.convert._canonical import made
from maskattn.convert._model import Model
from maskattn.convert._provenance import Buffers
from maskattn.convert.families import Form
from maskattn.convert.layouts import Step
from maskattn.convert.lazy import Lazy, constant
from maskattn.typing import NumPyArray as Array

LARGEST = 2**26
"""Bytes of one table."""
ROOM = 24 * 2**10
"""Bytes of all of them, compressed: a zip archive has 64 KiB for what it says of itself."""


def carry(model: Model, to: Form, infos: Mapping[str, TensorInfo], written: dict[str, Lazy]) -> None:
    """Takes the source's own as they are where the target is of the same form."""
    same = to.family is model.form.family and to.layout is None and model.form.layout is None
    for name in (*model.tables, *model.buffers) if same else ():
        if name in model.dropped and to.find(name) is not None:
            del model.dropped[name]
            written.setdefault(name, Lazy.read(name, *infos[name]))


def make_again(before: Buffers, to: Form, written: dict[str, Lazy]) -> bool:
    """Adds what was left out of this family and is missing; whether this is the form it belongs to."""
    infos = before.get(to.family.name, {}) if to.layout is None else {}
    for name, (shape, dtype) in infos.items():
        place = to.find(name)
        if place is not None and place[0].maker:
            written.setdefault(name, constant(made(place[0].maker, shape, dtype)))
    return bool(infos)


def put_back(tables: Mapping[str, Array], to: Form, written: dict[str, Lazy]) -> None:
    """Adds those that were left out of this family and whose bytes were kept."""
    for name, array in tables.items() if to.layout is None else ():
        if to.find(name) is not None:
            written.setdefault(name, constant(array))


def steps(model: Model, *, kept: bool) -> Iterator[Step]:
    """The steps of ``model``; where bytes are ``kept``, leaving out a table can be undone."""
    for step in model.steps.values():
        local = step.name.removeprefix("drop ")
        names = [name for name in model.tables if local != step.name and name.endswith(local)]
        if not names or step.exact or not kept:
            yield step
        elif set(names) & set(model.dropped):
            yield Step(step.name, f"{step.text}; its bytes are kept for the way back")


def said(model: Model, *, kept: bool) -> dict[str, str]:
    """Why each of those that are left out is so."""
    left_out = [name for name in model.tables if name in model.dropped and kept]
    return {name: f"{model.dropped[name]}; its bytes are kept for the way back" for name in left_out}


def pack(names: Iterable[str], read: Callable[[str], Array]) -> dict[str, object]:
    """The tables of these names as plain data, equal ones once; ``unpack`` gives them again.

    Raises:
        ValueError: they are larger than any that a model computes.
    """
    contents: list[dict[str, object]] = []
    tensors: dict[str, int] = {}
    known: dict[tuple[object, ...], int] = {}
    total = 0
    for name in names:
        array = np.asarray(read(name))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        key = array.shape, array.dtype.name, hashlib.sha256(data).digest()
        if key not in known:
            small = zlib.compress(data, 9)
            total += len(small)
            if array.nbytes > LARGEST or total > ROOM:
                raise ValueError(
                    f"{name}: {array.dtype} {list(array.shape)} is no table that a model computes when it is built: "
                    f"it has {len(small)} bytes when compressed"
                )
            known[key] = len(contents)
            text = base64.b64encode(small).decode()
            contents.append({"dtype": array.dtype.name, "shape": list(array.shape), "zlib": text})
        tensors[name] = known[key]
    return {"contents": contents, "tensors": tensors}


def unpack(provenance: Mapping[str, object]) -> dict[str, dict[str, Array]]:
    """By family: its tables, by their names there.

    Raises:
        ValueError: they cannot be read, or would be larger than what they are said to be.
    """
    told: Any = provenance.get("tables") or {}
    try:
        return {
            str(family): _named([_array(content) for content in entry["contents"]], entry["tensors"])
            for family, entry in told.items()
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise ValueError(f"provenance: tables cannot be read ({error!r:.200})") from None


def _named(arrays: list[Array], tensors: Mapping[str, int]) -> dict[str, Array]:
    return {str(name): arrays[at] for name, at in tensors.items()}


def _array(content: Mapping[str, Any]) -> Array:
    shape, dtype = tuple(int(size) for size in content["shape"]), np.dtype(content["dtype"])
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > LARGEST or dtype.kind not in "biufV":
        raise ValueError(f"{dtype} {list(shape)}")
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(content["zlib"], validate=True), size + 1)
    if len(data) != size or not unpacking.eof:
        raise ValueError(f"{len(data)} bytes of {size}")
    return np.frombuffer(data, dtype).reshape(shape)
