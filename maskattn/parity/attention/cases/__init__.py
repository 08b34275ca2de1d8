"""The one list of cases: what the parity suite runs, and where tests, benchmarks and documents take theirs from."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Iterator

from maskattn.parity.attention.arrays import cotangent, inputs, unreached
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.attention.cases import biases, compositions, dropout, each_mask, modules, options, planted, recipes
from maskattn.parity.attention.cases.compositions import fresh
from maskattn.parity.attention.cases.mask_table import compose, families
from maskattn.parity.attention.cases.shapes import DTYPES, SHAPES

__all__ = [
    "DTYPES",
    "SHAPES",
    "Case",
    "Shape",
    "compose",
    "cotangent",
    "families",
    "fresh",
    "get",
    "inputs",
    "registry",
    "select",
    "unreached",
]


def registry() -> Iterator[Case]:
    """Every case of the suite, in a fixed order."""
    for table in (each_mask, recipes, biases, options, dropout, planted, modules, compositions):
        yield from table.entries()


def select(pattern: str | None = None, tag: str | None = None) -> list[Case]:
    """The registry's cases whose id matches the shell pattern (or contains it) and that carry the tag."""
    chosen = []
    for case in registry():
        if pattern and not (fnmatch.fnmatch(case.id, pattern) or pattern.lower() in case.id.lower()):
            continue
        if tag is None or tag in case.tags:
            chosen.append(case)
    return chosen


def get(case_id: str) -> Case:
    """The case of this id, or a KeyError with the nearest ids."""
    known = _by_id(tuple(families()))
    if case_id not in known:
        near = difflib.get_close_matches(case_id, known, n=3)
        raise KeyError(
            f"case id: expected an id of the registry, got {case_id!r}; near it: {', '.join(near) or 'none'}"
        )
    return known[case_id]


@functools.lru_cache(maxsize=1)
def _by_id(_: tuple[str, ...]) -> dict[str, Case]:
    """The registry by id, made anew where the library has another mask."""
    return {case.id: case for case in registry()}
