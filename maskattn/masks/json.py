"""Masks as JSON, arrays included: `mask.to_json()` and `from_json(text)`.

A document is {"maskattn": 1, "mask": M}. A mask M is {"ClassName": {field: value, ...}} with every field of the class:

- a static field: an integer, true, false, null, or a list of these (a tuple);
- a data field: null, an integer, or an array {"dtype": "int64", "shape": [2, 3], "base64": "..."}, row-major and
  little-endian, of bool (one byte each, 0 or 1) or an integer dtype;
- a part: a mask, or a list of masks.

A text may come from anywhere: it names only classes of this library (and those the caller passes), sizes are checked
before memory is taken, and what it builds goes through the constructors.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from maskattn._declared import Kind
from maskattn.masks._core import Mask
from maskattn.masks._names import known_classes
from maskattn.masks._to_json import DTYPES, LIMIT, VERSION, given

MAX_CHARACTERS = 64 << 20
MAX_DEPTH = 100
MAX_BRACKETS = 200_000
_ARRAY_KEYS = ("dtype", "shape", "base64")

#: A whole string, closed or not (so that no text makes the search start over), or a bracket.
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def from_json(text: str | bytes, classes: Iterable[type[Mask]] = (), max_characters: int = MAX_CHARACTERS) -> Mask:
    """The mask of a text that `to_json` wrote, True = may attend, with NumPy data: the same bytes, dtypes and shapes.

    Args:
        text: str, or UTF-8 bytes.
        classes: further classes of masks that the text may name, besides the library's.
        max_characters: the longest text that is read, by default 64 MiB.

    Raises:
        ValueError: the text is not such a document; the message says where and what was expected. TypeError: it is not
            str or bytes.

    >>> from maskattn import masks
    >>> text = (masks.Causal() & masks.KeyPadding([5, 3])).to_json()
    >>> masks.from_json(text)
    Causal() & KeyPadding([5, 3])
    >>> masks.from_json('{"maskattn": 1, "mask": {"Causal": {}}}')
    Traceback (most recent call last):
    ...
    ValueError: from_json: mask.Causal: missing offset
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"from_json: text must be str or bytes, got {type(text).__name__}")
    if len(text) > max_characters:
        raise ValueError(f"from_json: text must have at most {max_characters} characters, got {len(text)}")
    return _FromJson(known_classes("from_json", classes)).document(text)


class _FromJson:
    def __init__(self, classes: dict[str, type[Mask]]) -> None:
        self.classes = classes

    def document(self, text: str | bytes) -> Mask:
        try:
            text = text.decode() if isinstance(text, bytes) else text
            _check_brackets(text)
            tree = json.loads(
                text, object_pairs_hook=_pairs, parse_constant=_no_number, parse_float=_no_number, parse_int=_integer
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"from_json: not JSON: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"from_json: not UTF-8: {error}") from None
        fields = self.keys(tree, ("maskattn", "mask"), "the document")
        if type(fields["maskattn"]) is not int or fields["maskattn"] != VERSION:
            raise _fault("maskattn", f"expected version {VERSION}, got {_short(fields['maskattn'])}")
        return self.mask(fields["mask"], "mask")

    def mask(self, tree: object, where: str) -> Mask:
        if not isinstance(tree, dict) or len(tree) != 1:
            raise _fault(where, f'expected a mask, {{"ClassName": {{...}}}}, got {_short(tree)}')
        ((name, fields),) = tree.items()
        cls = self.classes.get(name)
        if cls is None:
            known = ", ".join(sorted(self.classes))
            raise _fault(where, f"there is no mask {_short(name)}; there are {known}")
        where = f"{where}.{name}"
        names = given(cls)
        entries = self.keys(fields, names, where)
        values = {}
        for key in names:
            kind, at = cls._kinds.get(key, Kind()), f"{where}.{key}"
            if kind.role == "part":
                values[key] = self.part(entries[key], kind.many, at)
            else:
                values[key] = self.data(entries[key], at) if kind.role == "data" else self.static(entries[key], at)
        try:
            return cls(**values)
        except (ValueError, TypeError, OverflowError) as error:
            raise _fault(where, str(error)) from None

    def keys(self, tree: object, expected: tuple[str, ...], where: str) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise _fault(where, f"expected an object with {', '.join(expected) or 'no fields'}, got {_short(tree)}")
        faults = [f"missing {name}" for name in expected if name not in tree]
        faults += [f"unexpected {_short(name)}" for name in tree if name not in expected][:3]
        if faults:
            raise _fault(where, "; ".join(faults))
        return tree

    def part(self, tree: object, many: bool | None, where: str) -> Any:
        if many is False or (many is None and not isinstance(tree, list)):
            return self.mask(tree, where)
        if not isinstance(tree, list):
            raise _fault(where, f"expected a list of masks, got {_short(tree)}")
        return tuple(self.mask(entry, f"{where}[{i}]") for i, entry in enumerate(tree))

    def static(self, tree: object, where: str) -> Any:
        if isinstance(tree, list):
            return tuple(self.static(entry, f"{where}[{i}]") for i, entry in enumerate(tree))
        if tree is None or isinstance(tree, int):
            return tree
        raise _fault(where, f"expected an integer, true, false, null or a list of them, got {_short(tree)}")

    def data(self, tree: object, where: str) -> Any:
        if tree is None or type(tree) is int:
            return tree
        fields = self.keys(tree, _ARRAY_KEYS, where)
        dtype, shape, text = (fields[key] for key in _ARRAY_KEYS)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise _fault(f"{where}.dtype", f"expected one of {', '.join(DTYPES)}, got {_short(dtype)}")
        right = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
        if not right or len(shape) > 8:
            raise _fault(f"{where}.shape", f"expected a list of up to 8 lengths, got {_short(shape)}")
        if not isinstance(text, str):
            raise _fault(f"{where}.base64", f"expected a string, got {_short(text)}")
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if len(text) != -(-size // 3) * 4:
            needed = f"{-(-size // 3) * 4} characters ({size} bytes for {dtype}{shape})"
            raise _fault(f"{where}.base64", f"expected {needed}, got {len(text)}")
        try:
            content = binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise _fault(f"{where}.base64", f"expected base64: {error}") from None
        if len(content) != size:
            raise _fault(f"{where}.base64", f"expected {size} bytes, got {len(content)}")
        if dtype == "bool" and content.translate(None, b"\0\1"):
            raise _fault(f"{where}.base64", "expected bytes 0 and 1, as the dtype is bool")
        stored = np.frombuffer(content, DTYPES[dtype].newbyteorder("<"))
        try:
            return stored.reshape(shape).astype(DTYPES[dtype])
        except ValueError as error:
            raise _fault(f"{where}.shape", str(error)) from None


def _check_brackets(text: str) -> None:
    """Depth and number of lists and objects, before anything is built."""
    depth = count = 0
    for match in _BRACKET.finditer(text):
        sign = match[0]
        if sign in "[{":
            depth, count = depth + 1, count + 1
        elif sign in "]}":
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_BRACKETS:
            what = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"more than {MAX_BRACKETS} objects"
            raise ValueError(f"from_json: {what}, at character {match.start()}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in entries if names.count(name) > 1)
        raise ValueError(f"from_json: the key {_short(twice)} is given twice in one object")
    return entries


def _no_number(text: str) -> Any:
    raise ValueError(f"from_json: expected integers only, got {text[:40]}")


def _integer(text: str) -> int:
    if len(text) > 20 or not -LIMIT <= int(text) < LIMIT:
        raise ValueError(f"from_json: expected integers of 64 bits, got {text[:40]}")
    return int(text)


def _fault(where: str, problem: str) -> ValueError:
    return ValueError(f"from_json: {where}: {problem}")


def _short(tree: object) -> str:
    if isinstance(tree, dict):
        return f"an object with {len(tree)} keys"
    if isinstance(tree, list):
        return f"a list of {len(tree)}"
    text = json.dumps(tree)
    return text if len(text) <= 60 else f"{text[:57]}..."
