"""Code in pages: a public name between backquotes is a link to the reference; an example ends with its last line."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from _site.names import exported

if TYPE_CHECKING:
    from docutils.nodes import document
    from sphinx.application import Sphinx

#: `masks.Causal`, `recipes.mistral(4096)`, `Causal()`: a name, and what it may be called with.
_NAME = re.compile(r"(?P<name>[A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?", re.DOTALL)


@functools.cache
def public(text: str) -> str:
    """The one public thing that code in a page can mean by the end of its name; nothing where there are several.

    A word alone is taken for one where it is a class's: what begins with a small letter may be anybody's.
    """
    match = _NAME.fullmatch(text)
    if not match or not ("." in match["name"] or match["name"][0].isupper()):
        return ""
    names = [name for name in exported() if name == match["name"] or name.endswith(f".{match['name']}")]
    return names[0] if len({id(exported()[name]) for name in names}) == 1 else ""


def improve(app: Sphinx, doctree: document) -> None:
    """Links of public names in a page, and no empty line at the end of its examples, which doctest needs."""
    from docutils.nodes import Text, literal, literal_block, reference, title
    from sphinx.addnodes import pending_xref

    for block in doctree.findall(literal_block):
        if block.rawsource == block.astext() and block.rawsource.endswith("\n"):
            block.rawsource = block.rawsource.rstrip("\n")
            block[:] = [Text(block.rawsource)]
    if app.env.docname.startswith("reference/"):
        return  # its own words are linked as it is made
    for code in list(doctree.findall(literal)):
        name = public(code.astext())
        if name and not isinstance(code.parent, (reference, pending_xref, title)):
            link = pending_xref("", code.deepcopy(), refdomain="py", reftype="obj", reftarget=name, refwarn=True)
            link["refdoc"] = app.env.docname
            code.parent.replace(code, link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", improve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
