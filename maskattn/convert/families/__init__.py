"""How whole models are stored: for each family a table, in TOML, that accounts for every tensor.

>>> from maskattn.convert import families
>>> families.get("hf-clip").model
'clip'
>>> [family.name for family in families.all_families() if family.model == "clip"]
['hf-clip', 'openai-clip']

A table names the kinds of tensors by their names and never by their shapes; ``_family.py`` says what it may hold. One
of your own is a file like those here, given by its path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from maskattn.convert import layouts
from maskattn.convert.families._family import KINDS, Family, Rule, parse, read
from maskattn.convert.families._form import GENERIC, Form

__all__ = [
    "GENERIC",
    "KINDS",
    "Family",
    "Form",
    "Rule",
    "all_families",
    "forms",
    "get",
    "layout_of",
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
    """The family of that name, or of that ``.toml`` file; ValueError names the nearest and lists the known ones."""
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
    meant = layouts.meant(str(family), names())
    raise ValueError(f"unknown family {str(family)!r}{meant} a .toml file or one of: {', '.join(names())}")


def layout_of(name: str) -> str:
    """The attention layout of the family of that name, or the layout of that name."""
    known = {family.name: family.layout for family in all_families()}
    return known.get(name) or layouts.get(name).name


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
