"""`Mask.why`: the rule of each part of an expression, with the numbers of one pair in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

#: A name, perhaps with an index: lengths[b], keep[b, h, q, k], offset, q.
_NAME = re.compile(r"\b([A-Za-z_]\w*)(?:\[([^\[\]]*)\])?")
#: Two words in a row, which no formula has.
_WORDS = re.compile(r"[A-Za-z]\w* [A-Za-z]")
_CONNECTIVES = re.compile(r"\b(or|and|not)\b")


class Rule(Protocol):
    """What is asked of a mask here."""

    rule: ClassVar[str]

    def allowed(self, b: Any, h: Any, q: Any, k: Any) -> Any: ...
    def asks(self, b: int, h: int, q: int, k: int) -> Sequence[tuple[Rule, tuple[int, int, int, int]]]: ...
    def reads(self) -> dict[str, Any]: ...


def explain(mask: Rule, b: int, h: int, q: int, k: int) -> str:
    """What the whole expression says of one pair, then, indented, what each part says; the text of `Mask.why`."""
    verdict = "may" if mask.allowed(b, h, q, k) else "may not"
    head = f"query {q} {verdict} attend to key {k} (batch row {b}, head {h})"
    return "\n".join([head, *("  " + line for line in _lines(mask, b, h, q, k))])


def _lines(mask: Rule, b: int, h: int, q: int, k: int) -> list[str]:
    allows = bool(mask.allowed(b, h, q, k))
    text = f"{mask!r} {'allows' if allows else 'forbids'} it"
    asked = mask.asks(b, h, q, k)
    reason = "" if asked else _reason(mask, allows, {"b": b, "h": h, "q": q, "k": k})
    lines = [text + reason + (":" if asked else "")]
    for child, where in asked:
        moved = [f"{name} {at}" for name, at, was in zip(("query", "key"), where[2:], (q, k), strict=True) if at != was]
        if moved:
            lines.append(f"  here {' and '.join(moved)}:")
        lines += ["  " * (2 if moved else 1) + line for line in _lines(child, *where)]
    return lines


def _reason(mask: Rule, allows: bool, indices: dict[str, int]) -> str:
    """The mask's rule for this pair: a formula with the numbers in it, or the words."""
    rule = mask.rule
    if not rule:
        return ""
    known = mask.reads()
    prose = bool(_WORDS.search(_CONNECTIVES.sub("|", rule)))
    spoken = {"q": f"query {indices['q']}", "k": f"key {indices['k']}"}

    def value(match: re.Match[str]) -> str:
        name, inside = match[1], match[2]
        if inside is not None and name in known:
            return _entry(known[name], [index.strip() for index in inside.split(",")], indices)
        if name in indices:
            return spoken.get(name, str(indices[name])) if prose else str(indices[name])
        if prose or name not in known or not isinstance(known[name], (int, tuple, type(None))):
            return match[0]
        return "inf" if known[name] is None else str(known[name])

    filled = _NAME.sub(value, rule)
    if filled == rule:
        return f": it allows {rule}"
    entry = _NAME.fullmatch(rule)
    if entry and entry[2] is not None:  # a lookup is its own verdict
        where = [index.strip() for index in entry[2].split(",")]
        plain = all(index in indices for index in where)
        shown = f"{entry[1]}[{', '.join(str(indices[index]) for index in where)}]" if plain else rule
        return f": {shown} is {allows}"
    if prose:
        return f": {filled}" if allows else f": it is not so that {filled}"
    return f": {filled} is {'true' if allows else 'false'} ({rule})"


def _entry(array: Any, where: list[str], indices: dict[str, int]) -> str:
    """The entry of an array at named indices; batch and heads broadcast, and outside there is nothing."""
    if not hasattr(array, "shape"):
        return str(array)
    place = []
    for size, name in zip(reversed(array.shape), reversed(where), strict=False):
        if name not in indices:
            return "?"
        stretched = size == 1 and name in ("b", "h")
        if not stretched and not 0 <= indices[name] < size:
            return "nothing"
        place.append(0 if stretched else indices[name])
    return str(np.asarray(array)[tuple(reversed(place))])
