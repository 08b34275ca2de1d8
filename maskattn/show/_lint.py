"""What looks wrong with a mask at given lengths, in words."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator

import numpy as np

from maskattn._fields import to_numpy
from maskattn.masks import (
    And,
    At,
    Causal,
    Empty,
    Full,
    KeyMask,
    KeyPadding,
    Mask,
    Not,
    Or,
    QueryMask,
    SlidingWindow,
    evaluate,
    require_mask,
)
from maskattn.schedule.reach import empty_rows
from maskattn.schedule.tiles import Schedule

Place = Callable[[Mask], Mask]  # puts a part where it stands in the whole: moved by the `at` around it
_GROUPS = 3  # of rows, named in one warning


def lint(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None, budget: int = 1 << 22
) -> list[str]:
    """Warnings, a sentence each: rows that may attend to nothing, an operand that changes nothing, a window that never
    binds, an expression that is always true or always false, a mask of queries or of keys that leaves padding visible,
    a `Causal()` between sequences of two lengths.

    While the mask has at most `budget` entries that differ, every pair is looked at, and what is reported is all there
    is. Beyond that a warning is given only where `Mask.tile` proves it.

    Args:
        mask: True = may attend.
        q_len, kv_len, batch, heads: the sizes it is used at; None takes them from the data.

    Raises:
        ValueError: a size conflicts with the data.

    >>> from maskattn import masks
    >>> for warning in masks.lint(masks.Causal() & masks.SlidingWindow(255), 64, 64):
    ...     print(warning)
    SlidingWindow(255) changes nothing: what it forbids is forbidden without it
    SlidingWindow(255): left=255 never binds at 64 x 64
    """
    require_mask("lint", mask)
    mask = mask.map_data(to_numpy)
    sizes = mask.settle(q_len, kv_len, batch, heads)
    if 0 in sizes.values():
        return []
    judge = _Judge(mask, sizes, budget)
    warnings = judge.whole()
    for node, place, sense in _nodes(mask):
        if isinstance(node, (And, Or)):
            warnings += judge.operands(node, place)
        elif isinstance(node, SlidingWindow):
            warnings += judge.window(node, place)
        elif isinstance(node, Causal) and place(node) is node:
            warnings += judge.diagonal(node)
        elif isinstance(node, QueryMask) and sense == "plain":
            warnings += judge.queries(node, place)
        elif isinstance(node, (KeyMask, KeyPadding)) and sense == "turned":
            warnings += judge.padding(node, place)
    return list(dict.fromkeys(warnings))


def _nodes(mask: Mask, place: Place = lambda m: m, sense: str = "plain") -> Iterator[tuple[Mask, Place, str]]:
    """Every part that is combined by & | ~ `at`, from the outside in, with its place and its sense: "plain", "turned"
    (inside ~ of a combination, which nobody writes for one of its parts) or "complement" (~ of this part itself)."""
    yield mask, place, sense
    if isinstance(mask, (And, Or)):
        for child in mask.parts:
            yield from _nodes(child, place, sense)
    elif isinstance(mask, Not):
        inner = mask.part.part if isinstance(mask.part, At) else mask.part
        turned = "plain" if sense == "turned" else "turned"
        yield from _nodes(mask.part, place, turned if isinstance(inner, (And, Or)) else "complement")
    elif isinstance(mask, At):
        yield from _nodes(mask.part, lambda m: place(At(m, mask.q_offset, mask.k_offset)), sense)


class _Judge:
    def __init__(self, mask: Mask, sizes: dict[str, int], budget: int) -> None:
        self.mask, self.sizes = mask, sizes
        self.shape = (sizes["batch"], sizes["heads"], sizes["q_len"], sizes["kv_len"])
        entries = 1
        for name, size in zip("bhqk", self.shape, strict=True):
            entries *= size if name in mask.depends else 1
        self.dense = entries <= budget
        self.size = f"{sizes['q_len']} x {sizes['kv_len']}"

    def value(self, mask: Mask) -> np.ndarray:
        """bool, broadcastable to the shape; only where `dense`."""
        return np.asarray(evaluate(mask, self.shape, np.arange))

    def always(self, mask: Mask) -> bool | None:
        """Whether the mask allows everything (True) or nothing (False) here; None where neither, or not known."""
        if self.dense:
            value = self.value(mask)
            return True if value.all() else (None if value.any() else False)
        counts = Schedule.of(mask, *self.shape, *self.shape[2:]).counts  # the whole is one tile
        return None if counts["mixed"] or counts["full"] and counts["empty"] else counts["full"] > 0

    def whole(self) -> list[str]:
        verdict = self.always(self.mask)
        if verdict is True:
            return [] if isinstance(self.mask, Full) else [f"the mask allows everything at {self.size}"]
        if verdict is False:
            return [] if isinstance(self.mask, Empty) else [f"the mask allows nothing at {self.size}"]
        empty = self.empty_rows()
        return [] if empty is None or not empty.any() else [f"rows that may attend to nothing: {_rows(empty)}"]

    def empty_rows(self) -> np.ndarray | None:
        """bool [batch or 1, heads or 1, q_len]: what is known to be empty."""
        if self.dense:
            return empty_rows(self.mask, *self.shape)
        if self.shape[0] * self.shape[1] * self.shape[2] > 1 << 22:
            return None
        rows = Schedule.of(self.mask, *self.shape, 1, self.shape[3])
        return np.diff(rows.indptr).reshape(rows.batch, rows.heads, rows.q_len) == 0

    def operands(self, node: And | Or, place: Place) -> list[str]:
        """Operands that could be left out, found from the last to the first, each against those that are kept."""
        neutral, join = (True, operator.and_) if isinstance(node, And) else (False, operator.or_)
        verdicts = [self.always(place(part)) for part in node.parts]
        warnings = []
        for part, verdict in zip(node.parts, verdicts, strict=True):
            word = "everything" if verdict else "nothing"
            if verdict is neutral:
                warnings.append(f"{_short(part)} changes nothing: it allows {word} at {self.size}")
            elif verdict is not None:
                warnings.append(f"{_short(part)} decides alone: it allows {word} at {self.size}")
        kept = [part for part, verdict in zip(node.parts, verdicts, strict=True) if verdict is None]
        if not self.dense or (not neutral) in verdicts or len(kept) < 2:
            return warnings
        values = {id(part): self.value(place(part)) for part in kept}
        total = functools.reduce(join, values.values())
        if total.all() or not total.any():
            return warnings
        word = "forbids is forbidden" if neutral else "allows is allowed"
        for part in reversed(kept):
            rest = [values[id(other)] for other in kept if other is not part]
            if rest and bool((functools.reduce(join, rest) == total).all()):
                kept = [other for other in kept if other is not part]
                warnings.append(f"{_short(part)} changes nothing: what it {word} without it")
        return warnings

    def window(self, node: SlidingWindow, place: Place) -> list[str]:
        sides = {"left": SlidingWindow(node.left, None), "right": SlidingWindow(None, node.right)}
        return [
            f"{node!r}: {name}={getattr(node, name)} never binds at {self.size}"
            for name, side in sides.items()
            if getattr(node, name) is not None and self.always(place(side)) is True
        ]

    def diagonal(self, node: Causal) -> list[str]:
        """A causal mask between sequences of two lengths that does not say where its diagonal is."""
        q_len, kv_len = self.sizes["q_len"], self.sizes["kv_len"]
        if node.offset or q_len == kv_len:
            return []
        return [
            f"{node!r} starts its diagonal at the top left, where query 0 sees key 0 alone; at {self.size} "
            f"Causal.end_aligned({q_len}, {kv_len}) ends it at the bottom right"
        ]

    def queries(self, node: QueryMask, place: Place) -> list[str]:
        """A key whose slot the QueryMask drops, and which is attended to all the same, in self-attention."""
        if not self.dense or self.sizes["q_len"] != self.sizes["kv_len"]:
            return []
        pair = self.first(self.value(self.mask) & ~self.value(place(KeyMask(node.keep))))
        if pair is None:
            return []
        b, q, k = pair
        return [f"{_short(node)} drops queries, not keys: query {q} of row {b} still attends to key {k}; see KeyMask"]

    def padding(self, node: Mask, place: Place) -> list[str]:
        """A key that a mask of keys drops, and that ~ brought back."""
        pair = self.first(self.value(self.mask) & ~self.value(place(node))) if self.dense else None
        if pair is None:
            return []
        b, q, k = pair
        return [f"~ lets through what {_short(node)} drops: query {q} of row {b} attends to key {k}; mask it again"]

    def first(self, pairs: np.ndarray) -> tuple[int, int, int] | None:
        places = np.argwhere(pairs)
        return (int(places[0][0]), int(places[0][2]), int(places[0][3])) if len(places) else None


def _short(mask: Mask) -> str:
    text = repr(mask)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _rows(empty: np.ndarray) -> str:
    """q = 3, 5..7 (batch row 0), and so on; what is the same in every row of the batch, or head, is said once."""
    groups: dict[str, list[str]] = {}
    batch, heads, _ = empty.shape
    for b in range(batch):
        for h in range(heads):
            if empty[b, h].any():
                where = [f"batch row {b}"] * (batch > 1) + [f"head {h}"] * (heads > 1)
                groups.setdefault(_ranges(np.flatnonzero(empty[b, h])), []).append(" ".join(where))
    said = []
    for ranges, places in groups.items():
        more = f" and {len(places) - _GROUPS} more" if len(places) > _GROUPS else ""
        named = ", ".join(place for place in places[:_GROUPS] if place) + more
        said.append(f"q = {ranges}" + (f" ({named})" if named and len(places) < batch * heads else ""))
    rest = len(said) - _GROUPS
    return "; ".join(said[:_GROUPS]) + (f"; and {rest} more sets of rows" if rest > 0 else "")


def _ranges(numbers: np.ndarray) -> str:
    """3, 5..7"""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    said = [f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(said[:_GROUPS]) + (f" and {len(said) - _GROUPS} more runs" if len(said) > _GROUPS else "")
