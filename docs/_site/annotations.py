"""Types in the reference: as they are written in the code, at the argument that they are of.

Sphinx would evaluate them, and print a union of what `Operand` stands for at each of a call's arguments. Written as in
the code, `Float[Operand, "B L H D"]`, a type gives the shape, and each word that the reference has is a link.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from _site.names import exported

if TYPE_CHECKING:
    from docutils.nodes import Element, Node
    from sphinx.application import Sphinx

#: Names, outside of quotes: a shape is none.
_WORDS = re.compile(r"(\"[^\"]*\"|'[^']*'|~?[A-Za-z_][\w.]*)")
#: The name of an argument or attribute, as napoleon has it in a field.
_FIELD = re.compile(r":(param|ivar) (?:[^:\s]+ )*([^:\s]+):")
#: A field up to the next one, or to the end of the paragraph.
_BLOCK = re.compile(r"^:(ivar|param|raises) ([^:\n]+):((?:.*)(?:\n(?!:).+)*)", re.MULTILINE)
#: Where another error follows the text of one.
_RAISED = re.compile(r"(?<=[.;])\s+(\w+(?:Error|Exception)(?:, \w+Error)*):\s+")


class Taken(NamedTuple):
    """What a function or a class is called with, as text, and what it returns."""

    arguments: dict[str, str]
    returned: str = ""


def add_types(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """The fields `:type x:` and `:rtype:` of what autodoc documents, after napoleon has made fields of sections."""
    taken = arguments_of(obj) if what in ("function", "method", "class", "exception") else Taken({})
    given = dict(taken.arguments)
    typed: list[str] = []
    for line in one_by_one(lines, given):
        field = _FIELD.match(line)
        word = field[2].replace("\\", "") if field else ""
        if field and word in given:
            typed.append(f":{'type' if field[1] == 'param' else 'vartype'} {field[2]}: {role(given.pop(word))}")
        typed.append(line)
    rest = [
        field
        for word, text in given.items()
        for field in (f":param {safe(word)}:", f":type {safe(word)}: {role(text)}")
    ]
    if what in ("function", "method") and taken.returned not in ("", "None"):
        rest.append(f":rtype: {role(taken.returned)}")
    if rest:
        typed += [] if typed and typed[-1].startswith(":") else [""]
        typed += [*rest, ""]
    lines[:] = typed


def one_by_one(lines: list[str], known: Iterable[str]) -> list[str]:
    """The lines of fields, each name in one of its own: `:ivar a, b: both. c: one` is three; napoleon sees one."""
    name = "|".join(map(re.escape, sorted(known, key=len, reverse=True))) or r"\Z"
    within = re.compile(rf"(?<=[.;])\s+((?:{name})(?:, (?:{name}))*):\s+")
    told: set[str] = set()

    def each(field: re.Match[str]) -> str:
        kind, names, text = field.groups()
        first, *more = (_RAISED if kind == "raises" else within).split(text)
        found = []
        for several, piece in [(names, first), *zip(more[::2], more[1::2], strict=True)]:
            for one in [several] if kind == "raises" else several.split(", "):
                if kind == "raises" or one not in told:  # what stands for two names was written twice
                    found.append(f":{kind} {one}: {piece.strip()}")
                told.add(one)
        return "\n".join(found)

    return _BLOCK.sub(each, "\n".join(lines)).split("\n")


def role(text: str) -> str:
    """A type as RST, to be read by `annotation`."""
    return f":annotation:`{text}`"


def safe(word: str) -> str:
    """The name of an argument as RST: what ends in an underscore would be a reference."""
    return word.replace("_", r"\_") if word.endswith("_") else word


def arguments_of(obj: object) -> Taken:
    """The types of what a function, or the making of a class, takes: of arguments that have one."""
    function = getattr(obj, "__func__", obj)
    if inspect.isclass(function) and issubclass(function, tuple):
        fields = {name: annotation for name, annotation in vars(function).get("__annotations__", {}).items()}
        return Taken({name: written(getattr(of, "__forward_arg__", of), function) for name, of in fields.items()})
    if inspect.isclass(function):
        function = vars(function).get("__init__")
    function = inspect.unwrap(function) if callable(function) else None
    if not inspect.isfunction(function):
        return Taken({})
    signature = inspect.signature(function)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    said = [p for p in signature.parameters.values() if p.annotation is not p.empty and p.kind not in variadic]
    returned = signature.return_annotation
    return Taken(
        {parameter.name: written(parameter.annotation, function) for parameter in said},
        "" if returned in (signature.empty, None) else written(returned, function),
    )


def written(annotation: object, of: type | Callable[..., object]) -> str:
    """An annotation as the code has it, with the public words of the library by their full names, behind a tilde."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    space = vars(sys.modules[of.__module__])

    def full(word: re.Match[str]) -> str:
        return word[0] if word[0][0] in "\"'" else f"~{named}" if (named := place(word[0], space)) else word[0]

    return _WORDS.sub(full, text)


def annotation(name: str, rawtext: str, text: str, line: int, inliner: object) -> tuple[list[Node], list[Node]]:
    """The role that shows a type as code whose words are links."""
    from docutils.nodes import Text, literal
    from sphinx.addnodes import pending_xref

    shown = literal(classes=["annotation"])
    for part in filter(None, _WORDS.split(text.replace("\x00", ""))):
        if part.startswith("~"):
            word = Text(part.rpartition(".")[2])
            shown += pending_xref("", word, refdomain="py", reftype="obj", reftarget=part[1:], refwarn=True)
        else:
            shown += Text(part)
    return [shown], []


def place(word: str, space: dict[str, object]) -> str:
    """Where the reference has what a module calls by this word; nowhere, unless it is public."""
    value = space.get(word)
    if inspect.isclass(value) and value in public():
        return public()[value]
    package = str(space["__name__"]).split(".")[0]
    for module in (f"{package}.types", "maskattn.typing"):
        if f"{module}.{word}" in exported() and getattr(sys.modules[module], word) is value:
            return f"{module}.{word}"
    if value is None and word[0].isupper():  # imported for type checkers alone
        named = [name for name in exported() if name.split(".")[0] == package and name.endswith(f".{word}")]
        return named[0] if len(named) == 1 else ""
    return ""


@functools.cache
def public() -> dict[object, str]:
    """The classes that modules export, by the first name that they have."""
    return {thing: name for name, thing in reversed(exported().items()) if inspect.isclass(thing)}


def set_dashes(app: Sphinx, doctree: Element) -> None:
    """Between an argument and its text a dash, for which Sphinx writes `--`."""
    from docutils.nodes import Text

    for text in [node for node in doctree.findall(Text) if node == " -- "]:
        text.parent.replace(text, Text(" \N{EN DASH} "))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx: after napoleon, whose priority is 500."""
    from sphinx.domains.python import PyObject

    app.add_role("annotation", annotation)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # Sphinx says Variables
    app.connect("autodoc-process-docstring", add_types, priority=800)
    app.connect("doctree-read", set_dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
