"""`Mask.why`: the rule of each part of an expression, with the numbers of one pair in it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np


class Explained(Protocol):
    """What is asked of a mask here."""

    rule: ClassVar[str]

    def allowed(self, b: object, h: object, q: object, k: object) -> Any: ...
    def asks(self, b: int, h: int, q: int, k: int) -> Sequence[tuple[Explained, tuple[int, int, int, int]]]: ...
    def reads(self) -> dict[str, Any]: ...


def explain(mask: Explained, b: int, h: int, q: int, k: int) -> str:
    """What the whole expression says of one pair, then, indented, what each part says; the text of `Mask.why`."""
    verdict = "may" if mask.allowed(b, h, q, k) else "may not"
    head = f"query {q} {verdict} attend to key {k} (batch row {b}, head {h})"
    return "\n".join([head, *("  " + line for line in _lines(mask, b, h, q, k))])


def _lines(mask: Explained, b: int, h: int, q: int, k: int) -> list[str]:
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


def _reason(mask: Explained, allows: bool, indices: dict[str, int]) -> str:
    """The mask's rule for this pair: a formula with the numbers in it, or the words."""
    rule = mask.rule
    if not rule:
        return ""
    formula = _formula(rule)
    if formula is None:
        spoken = {"b": indices["b"], "h": indices["h"], "q": f"query {indices['q']}", "k": f"key {indices['k']}"}
        said = " ".join(str(spoken.get(word, word)) for word in rule.split(" "))
    else:
        said = ast.unparse(_Numbers(mask.reads(), indices).visit(copy.deepcopy(formula)))
    if said == rule:
        return f": it allows {rule}"
    if formula is None:
        return f": {said}" if allows else f": it is not so that {said}"
    if isinstance(formula, ast.Subscript):  # its own verdict
        where = _names(formula)
        plain = all(index in indices for index in where)
        shown = f"{ast.unparse(formula.value)}[{', '.join(str(indices[index]) for index in where)}]" if plain else rule
        return f": {shown} is {allows}"
    return f": {said} is {'true' if allows else 'false'} ({rule})"


def _formula(rule: str) -> ast.expr | None:
    """The rule where it can be read as a formula; None where it is in words."""
    try:
        return ast.parse(rule, mode="eval").body
    except SyntaxError:
        return None


class _Numbers(ast.NodeTransformer):
    """Puts what is known in place of the names of a formula: an index, an int of the mask, an entry of its data."""

    def __init__(self, known: dict[str, Any], indices: dict[str, int]) -> None:
        self.known, self.indices = known, indices

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        name = ast.unparse(node.value)
        return ast.Name(_entry(self.known[name], _names(node), self.indices)) if name in self.known else node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.indices:
            return ast.Name(str(self.indices[node.id]))
        value = self.known.get(node.id, node)
        if not isinstance(value, (int, tuple, type(None))):
            return node
        return ast.Name("inf" if value is None else str(value))


def _names(lookup: ast.Subscript) -> list[str]:
    """What stands between the brackets: ["b", "k"] of keep[b, k]."""
    where = lookup.slice
    return [ast.unparse(index) for index in (where.elts if isinstance(where, ast.Tuple) else (where,))]


def _entry(array: object, where: list[str], indices: dict[str, int]) -> str:
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
