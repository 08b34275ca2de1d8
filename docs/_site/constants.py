"""What is said of a constant: where it is defined, which is not where people import it from."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def origin(module: str, name: str) -> tuple[str, str]:
    """The module that defines what this one has by this name, and how it is called there."""
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        for alias in node.names if isinstance(node, ast.ImportFrom) and node.module else ():
            if (alias.asname or alias.name) == name:
                return origin(str(node.module), alias.name)
    return module, name


def describe(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """The comment or the text beside a constant, in place of what its class says of itself."""
    if what != "data":
        return
    from sphinx.pycode import ModuleAnalyzer

    module, _, attribute = name.rpartition(".")
    module, attribute = origin(module, attribute)
    lines[:] = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", attribute), [])
    if not lines:
        raise ValueError(f"{name} is public, and nothing is said of it in {module}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx: before `docstrings`."""
    app.connect("autodoc-process-docstring", describe, priority=200)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
