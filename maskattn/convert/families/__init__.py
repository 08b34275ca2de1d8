"""How whole models are stored: for each family a table, in TOML, that accounts for every tensor.

>>> from maskattn import families
>>> families.get("hf-clip").model
'clip'
>>> [family.name for family in families.all_families() if family.model == "clip"]
['hf-clip', 'openai-clip']

A table names the kinds of tensors by their names and never by their shapes; ``_spec.py`` says what it may hold. One of
your own is a file like those here, given by its path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from maskattn.checkpoints import TensorInfo
from maskattn.convert import layouts
from maskattn.convert.families._form import GENERIC, Form
from maskattn.convert.families._match import Layer, Match, Stored, key, look_up, match
from maskattn.convert.families._spec import HEADS, KINDS, KV_HEADS, Family, Rule, parse, read

__all__ = [
    "GENERIC",
    "HEADS",
    "KINDS",
    "KV_HEADS",
    "Family",
    "Form",
    "Layer",
    "Match",
    "Rule",
    "Stored",
    "all_families",
    "forms",
    "get",
    "identify",
    "key",
    "layout_of",
    "look_up",
    "match",
    "names",
    "parse",
    "read",
]


@lru_cache(maxsize=1)
def all_families() -> tuple[Family, ...]:
    """Every family of the library, by name."""
    return tuple(sorted((read(path) for path in Path(__file__).parent.glob("*.toml")), key=lambda family: family.name))


def names() -> tuple[str, ...]:
    """The names of all families."""
    return tuple(family.name for family in all_families())


def get(family: str | os.PathLike[str] | Family) -> Family:
    """The family of that name, or of that ``.toml`` file; ValueError lists the known ones."""
    if isinstance(family, Family):
        return family
    for known in all_families():
        if known.name == family:
            return known
    path = Path(family)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FileNotFoundError(f"family: no file {path}")
        return read(path)
    raise ValueError(f"unknown family {str(family)!r}; expected a .toml file or one of: {', '.join(names())}")


def layout_of(name: str) -> str:
    """The attention layout of the family of that name, or the layout of that name."""
    known = {family.name: family.layout for family in all_families()}
    return known.get(name) or layouts.get(name).name


def forms(family: Family) -> Iterator[Form]:
    """Every form in which a checkpoint of ``family`` may be stored: its own first."""
    for prefix in family.prefixes:
        for layout in (None, *GENERIC):
            if layout == family.layout:
                continue  # the family's own form
            for scan in (False, True):
                yield Form(family, layout, scan, prefix)


def identify(
    infos: Mapping[str, TensorInfo],
    config: Mapping[str, Any] | None = None,
    among: Iterable[Form] | None = None,
) -> tuple[Match, ...]:
    """Every form whose names are exactly those of ``infos``: none missing, none left over.

    Forms that take every tensor for the same thing count once: a Flax tree made of BERT is one, whether the family's
    table has PyTorch's names or Flax's.

    ``config`` is a config.json; its model type narrows the families. ``among``: the forms to try; default: all forms of
    all families.
    """
    config = config or {}
    if among is None:
        among = [form for family in _of_type(config) for form in forms(family)]
    plain = {_plain(name) for name in infos}
    found: list[Match] = []
    for form in among:
        if not _may_hold(form, plain):
            continue
        result = match(form, infos, config, strict=True)
        if result is not None and result.complete and (result.layers or result.tensors):
            same = [m for m in found if m.form.family is form.family and m.form.prefix == form.prefix]
            found += [] if same else [result]  # its own form is tried first
    found.sort(key=lambda m: (m.form.layout is not None, m.form.family.style != "torch"))
    return tuple({_meaning(m): m for m in reversed(found)}.values())[::-1]


def _meaning(found: Match) -> Hashable:
    """What each stored tensor is taken for: equal for forms that make no difference."""
    tensors = frozenset((name, *entry[2], found.form.transposed(entry[0])) for name, entry in found.tensors.items())
    layers = frozenset(
        (name, found.form.layout_of(layer.rule).name, frozenset(layer.tensors.items()))
        for name, layer in found.layers.items()
    )
    return found.form.family.model, found.form.style, found.form.scan_axis, tensors, layers


def _of_type(config: Mapping[str, Any]) -> tuple[Family, ...]:
    told = config.get("model_type")
    fitting = tuple(f for f in all_families() if told in f.model_types and _agrees(f, config))
    return fitting or tuple(f for f in all_families() if not config or not f.when or told is None)


def _agrees(family: Family, config: Mapping[str, Any]) -> bool:
    return all(look_up(config, path) == value for path, value in family.when.items())


def _may_hold(form: Form, plain: set[str]) -> bool:
    """Cheaply: whether every name, its numbers set aside, is one that the form has."""
    whole, within = form.plain_names
    return all(name in whole or name.startswith(within) for name in plain)


def _plain(name: str) -> str:
    return re.sub(r"\d+", "#", name)
