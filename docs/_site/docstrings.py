"""Docstrings as RST reads them: those of the library are plain text, with code between backquotes or indented."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils.nodes import Node, system_message
    from docutils.parsers.rst.states import Inliner
    from sphinx.application import Sphinx

#: These are napoleon's, and what is indented below is no code; nor is what belongs to a list.
_SECTION = re.compile(r"(Args|Attributes|Examples?|Notes?|Raises|Returns|Warns|Yields):$")
_LIST = re.compile(r"([-*]|\d+\.) ")
#: What is markup to RST, where it stands outside of backquotes: emphasis, substitutions, references.
_MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")

#: What a link may be written as.
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")


def as_rst(lines: Iterable[str]) -> Iterator[str]:
    """The lines with `::` before what is indented, as Markdown has code, and with no markup but backquotes."""
    last, blank, inside, code, example, quoted = "", True, False, False, False, False
    for line in lines:
        text = line.strip()
        if not text:
            blank, example, quoted = True, False, False
            yield line
            continue
        example = example or text.startswith(">>>")
        if not line.startswith("    "):
            code = False
            inside = bool(_SECTION.match(line) or _LIST.match(line) or example or text.endswith("::"))
        elif blank and last and not inside:
            yield from ("::", "")
            inside = code = True
        last, blank = text, False
        if code or example:
            yield line
        else:
            shown, quoted = escaped(line, quoted)
            yield shown


def escaped(line: str, quoted: bool) -> tuple[str, bool]:
    """A line without markup but backquotes, and whether what follows it is between backquotes."""
    bullet = match[0] if (match := re.match(r"\s*\* ", line)) else ""
    shown = [bullet]
    for part in re.split("(`+)", line[len(bullet) :]):
        ticks = part.startswith("`")
        quoted ^= ticks
        shown.append(part if ticks or quoted else _MARKUP.sub(r"\\\g<0>", part))
    return "".join(shown), quoted


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """A docstring of autodoc's, before napoleon reads it."""
    lines[:] = as_rst(lines)


def name(
    role: str, rawtext: str, text: str, line: int, inliner: Inliner, options: object = None, content: object = None
) -> tuple[list[Node], list[system_message]]:
    """The role of what stands between backquotes: a link where it may be a name of the reference, else code."""
    from docutils.nodes import literal
    from sphinx.domains.python import PyXRefRole

    if _NAME.fullmatch(text):
        return PyXRefRole()("py:obj", rawtext, text, line, inliner)
    return [literal(rawtext, text.replace("\x00", ""))], []


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx: before napoleon, whose priority is 500."""
    app.add_role("name", name)
    app.connect("autodoc-process-docstring", rewrite, priority=300)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
