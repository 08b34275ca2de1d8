"""What docstrings refer to by another name than the reference has it: `maskattn.rng`, or a class by its name alone."""

from __future__ import annotations

import functools
import sys
import types
from typing import TYPE_CHECKING

from _site.names import MODULES, exported

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment


@functools.cache
def aliases() -> dict[str, str]:
    """module.name of each module that another exports under a name that is not its own -> its own."""
    exported()  # which imports all
    found = {}
    for module in MODULES:
        for name in getattr(sys.modules[module], "__all__", ()):
            thing = getattr(sys.modules[module], name)
            if isinstance(thing, types.ModuleType) and thing.__name__ != f"{module}.{name}":
                found[f"{module}.{name}"] = thing.__name__
    return found


def own(target: str) -> str:
    """A dotted name with the module's own name in it; the same one where it is."""
    for alias, module in aliases().items():
        if target == alias or target.startswith(f"{alias}."):
            return module + target.removeprefix(alias)
    return target


def alone(word: str, module: str) -> str:
    """What docstrings of a package mean by a name alone: what it exports itself, or the one class of this name."""
    if f"{module.partition('.')[0]}.{word}" in exported():
        return f"{module.partition('.')[0]}.{word}"
    roots = {module.partition(".")[0], "maskattn"}
    named = [name for name in exported() if name.endswith(f".{word}") and name.partition(".")[0] in roots]
    same = {id(exported()[name]) for name in named}
    return named[0] if len(same) == 1 and word[:1].isupper() else ""


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """What a name that nothing is documented under refers to."""
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.domains.python_domain
    name = own(target) if "." in target else alone(target, str(node.get("py:module")))
    known = next((each for each in same(name) if each in domain.objects), "")
    return (
        domain.resolve_xref(env, node.get("refdoc", env.docname), app.builder, "obj", known, node, contnode)
        if known
        else None
    )


def same(name: str) -> list[str]:
    """A public name, and the others of the same object."""
    names = exported()
    return [name, *(other for other in names if name in names and names[other] is names[name])] if name else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
