"""How whole models are stored: for each family a table that accounts for every tensor.

>>> from maskattn.convert import families
>>> families.get("openai-clip").model
'clip'
>>> families.of_type("clip")
('hf-clip', 'hf-clip-vision', 'openai-clip')

Those of Hugging Face are made of the rows of `maskattn.models` (``_rows.py``); those of other libraries are tables in
TOML, whose lines name the kinds of tensors by their names and never by their shapes; ``_family.py`` says what they may
hold. One of your own is a file like those here, given by its path.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from maskattn.convert import layouts
from maskattn.convert.families import _names, _rows
from maskattn.convert.families._family import KINDS, Family, Rule, parse, read
from maskattn.convert.families._form import GENERIC, Form
from maskattn.convert.families._rows import Sizes

__all__ = [
    "GENERIC",
    "KINDS",
    "Family",
    "Form",
    "Rule",
    "Sizes",
    "all_families",
    "forms",
    "get",
    "layout_of",
    "model_of",
    "names",
    "of_type",
    "parse",
    "read",
    "sizes",
    "types",
]


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, Family]:
    """The families of other libraries, by name. `[also.name]` in a file is one more, with these keys instead."""
    found: dict[str, Family] = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, more in {data["name"]: {}, **data.pop("also", {})}.items():
            found[name] = parse({**data, **more, "name": name}, str(path))
    return dict(sorted(found.items()))


@cache
def _plain(name: str) -> Family:
    return _rows.made(name, {})


@lru_cache(maxsize=1)
def all_families() -> tuple[Family, ...]:
    """Every family that is told by its names alone."""
    return (*(_plain(name) for name in _names.TOLD), *_tables().values())


def names() -> tuple[str, ...]:
    """The names of all families."""
    return tuple(sorted((*_names.table(), *_tables())))


def types() -> tuple[str, ...]:
    """What a config.json may call the models that there are families of."""
    listed = (*map(_names.types_of, _names.table()), *(family.model_types for family in _tables().values()))
    return tuple(dict.fromkeys(each for several in listed for each in several))


def of_type(model_type: str) -> tuple[str, ...]:
    """The families that models of a type are stored in, Hugging Face's own first; () where none is known."""
    own = sorted(
        (name for name in _names.table() if model_type in _names.types_of(name)),
        key=lambda name: model_type not in _names.table()[name][0],
    )
    return (*own, *(family.name for family in _tables().values() if model_type in family.model_types))


def model_of(name: str) -> str:
    """What the family of that name describes."""
    return _tables()[name].model if name in _tables() else _names.model_of(name)


def sizes(family: Family, model_type: str, config: Mapping[str, Any]) -> Sizes | None:
    """What a configuration says of the tensors of a model that is stored as ``family``; None where no row knows it."""
    own = [name for name in (*of_type(model_type), *_names.table()) if model_of(name) == family.model]
    rows = [name for name in own if name in _names.table()]
    return _rows.sizes(rows[0], config) if rows else None


def get(family: str | os.PathLike[str] | Family, config: Mapping[str, Any] | None = None) -> Family:
    """The family of that name, or of that ``.toml`` file; ValueError names the nearest and lists the known ones.

    ``config`` is a config.json, which says of some models what a family holds.
    """
    if isinstance(family, Family):
        return family
    name = str(family)
    if name in _tables():
        return _tables()[name]
    if name in _names.table():
        said = config if config and config.get("model_type") in _names.types_of(name) else {}
        return _rows.made(name, said) if said else _plain(name)
    path = Path(family)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FileNotFoundError(f"family: no file {path}")
        return read(path)
    meant = layouts.meant(str(family), names())
    raise ValueError(f"unknown family {str(family)!r}{meant} a .toml file or one of: {', '.join(names())}")


def layout_of(name: str) -> str:
    """The attention layout of the family of that name, or the layout of that name."""
    return get(name).layout if name in names() else layouts.get(name).name


def forms(family: Family, outer: str = "") -> Iterator[Form]:
    """Every form in which a checkpoint of ``family`` may be stored: its own first. ``outer``: before all names."""
    for prefix in family.prefixes:
        for layout in (None, *GENERIC):
            if layout == family.layout:
                continue  # the family's own form
            for scan in (False, True):
                yield Form(family, layout, scan, prefix, outer=outer)
        if family.old_norms:
            yield Form(family, None, False, prefix, outer=outer, old_norms=True)
