"""A table of a model with one fact of it broken: everything that a table says, by its type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from maskattn.masks import Full, Mask
from maskattn.models.leaves import Leaf
from maskattn.models.part import ACTIVATIONS

#: What says nothing about what is computed without dropout, or is the size or the place of something.
SILENT = {"axes", "begins", "trained", "dropout_rate", "depth_rate", "name", "model_type", "places", "inputs"}
SILENT |= {"outputs", "rows", "width", "shape", "turned", "size", "embed_dim", "num_heads", "num_kv_heads", "head_dim"}
SILENT |= {"kdim", "vdim", "dropout_rates"}
#: Of attention: what its projections say themselves.
SILENT |= {"out_dim", "qkv_bias", "out_bias", "sinks", "project", "buckets", "held"}
#: What a text may be instead.
WORDS = [("blocks", "groups"), ("softmax", "sigmoid", "picked"), ("all", "mask", "ids"), ("half", "interleaved")]
WORDS += [("layer", "rms"), ("front", "mean", "each")]
#: Of one class, where words have another meaning.
OWN = {("Classes", "read"): ("first", "pooled", "mean", "both", "patches")}


def mutants(table: Any) -> Iterator[tuple[str, Any]]:
    """(class, field and what was done to it, the table so changed)."""
    given = {each.name: getattr(table, each.name) for each in fields(table)}
    kind = type(table).__name__
    if isinstance(table, Leaf):
        kind = f"{kind}({table.name.rpartition('.')[2]})"
    for name, value in given.items():
        if name in SILENT and not is_dataclass(value):
            continue
        for done, other in changed(value, name, OWN.get((type(table).__name__, name), ())):
            yield f"{kind}.{name} {done}" if "." not in done else done, Later(table, {name: other})
    parts = {name: value for name, value in given.items() if is_dataclass(value) and not isinstance(value, Mask)}
    for one, x in given.items():
        for two, y in parts.items():
            if one != two and (one > two or x is None) and x != y and _exchangeable(table, one, two, x, y):
                yield f"{kind}.{one} as {two}", Later(table, {one: y, two: x})


def _exchangeable(table: Any, one: str, two: str, x: Any, y: Any) -> bool:
    types = {each.name: each.type for each in fields(table)}
    return type(x) is type(y) or (x is None and types[one] == types[two])


class Later:
    """A table with some fields changed, made when it is asked for: one that cannot be made says so then."""

    def __init__(self, table: Any, changes: dict[str, Any]) -> None:
        self.table, self.changes = table, changes

    def made(self) -> Any:
        return replace(self.table, **{name: made(value) for name, value in self.changes.items()})


def made(value: Any) -> Any:
    """A table that may be one that is made later."""
    if isinstance(value, Later):
        return value.made()
    return tuple(map(made, value)) if isinstance(value, tuple) else value


def changed(value: Any, name: str, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(what was done, another value); `words`: what a text may be."""
    if isinstance(value, bool):
        yield "flipped", not value
    elif isinstance(value, int):
        yield "+ 1", value + 1
        yield "- 1", value - 1
        if name == "max_distance":
            yield "much less", value // 6
    elif isinstance(value, float):
        yield "larger", 0.05 if name == "eps" else value * 3 or 1.0
    elif name in ("scale", "softcap") and value is None:
        yield "given", 0.3 if name == "scale" else 2.0
    elif isinstance(value, str):
        names = words or next((each for each in WORDS if value in each), ())
        if name.endswith("activation") and value in ACTIVATIONS.values():
            names = ("gelu", "gelu_tanh", "relu", "silu", "linear")
        yield from ((f"{value} made {other}", other) for other in names if other != value)
    elif isinstance(value, Mask):
        if value != Full():
            yield "lifted", Full()
            yield from mutants(value) if is_dataclass(value) else ()
    elif is_dataclass(value) and not isinstance(value, type):
        yield "dropped", None
        yield from mutants(value)
    elif isinstance(value, tuple) and value:
        yield "dropped", ()
        ends = {0, len(value) - 1}
        if value[0] != value[-1]:
            yield "turned round", value[::-1]
        for at in sorted(ends):
            if is_dataclass(value[at]) or isinstance(value[at], (float, tuple)):
                for done, other in changed(value[at], name):
                    if "." in done or isinstance(value[at], float):
                        yield done, tuple(other if x == value[at] else x for x in value)
