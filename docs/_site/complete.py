"""What makes a build fail: a public name that the reference lacks, and a page that asks another host for anything."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from _site.names import exported

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

#: What a browser loads by itself: scripts, styles, fonts, pictures, frames. A link is followed by its reader alone.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object|link(?![^>]*rel="(?:canonical|search|next|prev|index|author))
    )\b[^>]*?\b(?:src|href|data)\s*=\s*["'](?P<html>(?:https?:)?//[^"']+)
    |@import\s+(?:url\()?["']?(?P<import>(?:https?:)?//[^"')]+)
    |url\(\s*["']?(?P<url>(?:https?:)?//[^"')]+)""",
    re.VERBOSE | re.IGNORECASE,
)


def missing(documented: set[str]) -> list[str]:
    """The public names that are documented neither under that name nor, being the same object, under another."""
    names = exported()
    known = {id(thing) for name, thing in names.items() if name in documented and not shared(thing)}
    return [
        name for name, thing in names.items() if name not in documented and (shared(thing) or id(thing) not in known)
    ]


def shared(thing: object) -> bool:
    """Whether Python may hold one object for several equal values, so that identity says nothing."""
    return isinstance(thing, (int, str, tuple, frozenset, types.NoneType))


def check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """One warning for each public name that no page of the reference has."""
    from sphinx.util import logging

    for name in missing(set(env.domains.python_domain.objects)):
        logging.getLogger(__name__).warning(
            "%s is public, and no page of the reference has it", name, type="reference", subtype="missing"
        )


def loaded(text: str) -> list[str]:
    """What a browser would load from another host, of a page or a style sheet."""
    return [next(filter(None, match.groups())) for match in _LOADED.finditer(text)]


def asking(folder: Path) -> Iterator[str]:
    """'page: address' of each thing that a built site would load from another host."""
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        for address in loaded(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(folder)}: {address}"


def check_pages(app: Sphinx, exception: Exception | None) -> None:
    """An error that lists all that the built pages would load from another host."""
    if exception is None and app.builder.name == "html" and (found := list(asking(Path(app.outdir)))):
        raise ValueError("pages would load from other hosts:\n" + "\n".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("env-check-consistency", check_names)
    app.connect("build-finished", check_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
