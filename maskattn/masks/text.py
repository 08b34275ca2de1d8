"""Masks written as text, the way `repr` shows them: `parse("causal & window(255, 0)")`."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np

from maskattn.masks._core import Mask, complement, conjunction, disjunction
from maskattn.masks._names import known_classes, makers, snake_case
from maskattn.masks._to_json import DTYPES, LIMIT

ALIASES = {"window": "SlidingWindow", "padding": "KeyPadding", "prefix": "PrefixLM", "documents": "Segments"}
CONSTANTS = {"None": None, "none": None, "True": True, "true": True, "False": False, "false": False}
METHODS = ("at", "with_positions")
#: These are written with & | ~ and methods.
_OPERATORS = ("And", "Or", "Not", "At", "Positioned")

MAX_CHARACTERS, MAX_DEPTH, MAX_OPERATORS = 1 << 16, 50, 1000

_WORD = re.compile(r"(\s*)([A-Za-z_][A-Za-z0-9_]*|[0-9]+|\Z|.)", re.DOTALL)
_VALUE, _REST = "nd~-([", "&|,)] "
#: What may follow nothing, a sign, a name (n) or a number (d); a space is the end.
_FOLLOWS = {"": _VALUE, **dict.fromkeys("&|~=", _VALUE), "(": _VALUE + ")", "[": _VALUE + "]", ",": _VALUE + ")]"}
_FOLLOWS |= {"-": "d", ".": "n", "n": _REST + ".=([", "d": _REST, ")": _REST + ".", "]": _REST + "."}

Functions = Mapping[str, Callable[..., Any]]


def parse(text: str, classes: Iterable[type[Mask]] = (), names: Mapping[str, Functions] | None = None) -> Mask:
    """The mask that a text describes, True = may attend, in Python's grammar; nothing is evaluated.

    - A mask is called by its class name or the same in snake_case: `Causal()`, `prefix_lm(4)`. The parentheses may be
      left out where nothing is in them. Short names: window = SlidingWindow, padding = KeyPadding, prefix = PrefixLM,
      documents = Segments.
    - Arguments, positional or by keyword, are integers, None, True, False, lists and tuples of these, and masks (None,
      True and False also in lower case). A list of integers given as data is int64, as in Python; another dtype is
      written around it: `padding(int32([5, 3]))`. An array without entries is its dtype and shape: `int64[0]`.
    - `~` binds more than `&`, and `&` more than `|`; parentheses as usual.
    - `.at(q_offset=2)` and `.with_positions([[0, 1]], [[0, 1]])` follow a mask, and classmethods that make one follow
      its name: `segments.from_sizes([3, 5])`. Recipes are called as `recipes.mistral(4096)`.

    `parse(repr(mask)) == mask`, except that `repr` leaves out large data and data of a framework; `to_json` keeps them.

    Args:
        text: at most 65536 characters.
        classes: further classes of masks that the text may name, besides the library's.
        names: further functions that return masks, by the name that stands before the dot, as `recipes` does:
            {"mine": {"pattern": function}} for `mine.pattern(3)`.

    Raises:
        ValueError: the text is not a mask: what was expected, and a line that points at the place. TypeError: it is
            not a str.

    >>> from maskattn import masks
    >>> masks.parse("causal & ~window(255)")
    Causal() & ~SlidingWindow(255)
    >>> masks.parse("causal & window(left=255")
    Traceback (most recent call last):
    ...
    ValueError: masks.parse: column 25: expected "," or ")", got the end of the text
      causal & window(left=255
                              ^
    """
    if not isinstance(text, str):
        raise TypeError(f"masks.parse: text must be a str, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"masks.parse: text must have at most {MAX_CHARACTERS} characters, got {len(text)}")
    return _Text(text, known_classes("masks.parse", classes), {"recipes": _recipes(), **(names or {})}).read()


def _recipes() -> Functions:
    """Reached by name, as recipes are made of masks."""
    module = importlib.import_module("maskattn.recipes")
    return {name: getattr(module, name) for name in module.__all__ if name.islower()}


class _Text:
    """A text, and what its names stand for."""

    def __init__(self, text: str, classes: dict[str, type[Mask]], functions: Mapping[str, Functions]) -> None:
        self.text, self.functions = text, functions
        self.classes = {name: cls for name, cls in classes.items() if name not in _OPERATORS}
        self.classes |= {snake_case(name): cls for name, cls in self.classes.items()}
        self.classes |= {alias: classes[name] for alias, name in ALIASES.items()}

    def read(self) -> Mask:
        source = self.source()
        try:
            return self.mask(ast.parse(f"({source})", mode="eval").body)
        except SyntaxError as error:
            self.fail(error.msg, (error.offset or 2) - 2)
        except (RecursionError, MemoryError):
            self.fail("nested too deep", 0)

    def source(self) -> str:
        """The text for Python's parser: on one line, each word at its place, and known to fit after the one before."""
        words, closing, operators, place, last = [], " ", 0, 0, ""
        while last != " ":
            space, word = _WORD.match(self.text, place).groups()  # type: ignore[union-attr]  # it matches anything
            place += len(space)
            kind = "n" if word.isidentifier() else "d" if word.isdigit() else word or " "
            if not word.isascii() or kind not in (*_FOLLOWS, " "):
                self.fail(f"unexpected character {word!r}", place)
            inside = ",=" if closing[1:] else ""
            if kind not in _FOLLOWS[last] or (kind in ",=)] " and kind not in closing[-1] + inside):
                if last and last in "nd)]":
                    wanted = f'"," or "{closing[-1]}"' if inside else '"&", "|" or the end'
                else:
                    wanted = {"-": "a number", ".": "a name"}.get(last, "a mask or a value" if inside else "a mask")
                self.fail(f"expected {wanted}, got " + (f'"{word[:40]}"' if word else "the end of the text"), place)
            closing = closing[:-1] if kind in ")]" else closing + {"(": ")", "[": "]"}.get(kind, "")
            operators += kind in "&|"
            if len(closing) > MAX_DEPTH + 1:
                self.fail(f"nested more than {MAX_DEPTH} deep", place)
            if operators > MAX_OPERATORS:
                self.fail(f"more than {MAX_OPERATORS} operators", place)
            place, last = place + len(word), kind
            if kind == "d":
                if len(word) > 19 or int(word) >= LIMIT:
                    self.fail("this number does not fit in 64 bits", place - len(word))
                word = str(int(word)).rjust(len(word))
            elif keyword.iskeyword(word) and word not in CONSTANTS:
                word = word.title()  # the name of the class
            words += [" " * len(space), word]
        return re.sub("~ *~ *(?=~)", lambda pair: " " * len(pair[0]), "".join(words))

    def value(self, node: ast.expr) -> Any:
        """What an expression stands for. These kinds of nodes are read, and no others."""
        match node:
            case ast.Constant(value=int() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as number)):
                return -number
            case ast.UnaryOp(op=ast.Invert(), operand=part):
                return complement(self.mask(part))
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr() as sign):
                parts = []
                while isinstance(node, ast.BinOp) and type(node.op) is type(sign):
                    parts.append(node.right)
                    node = node.left
                combine = conjunction if isinstance(sign, ast.BitAnd) else disjunction
                return combine(*[self.mask(part) for part in (node, *reversed(parts))])
            case ast.List(elts=entries):
                return [self.value(entry) for entry in entries]
            case ast.Tuple(elts=entries):
                return tuple([self.value(entry) for entry in entries])
            case ast.Name(id=name) if name in CONSTANTS:
                return CONSTANTS[name]
            case ast.Name():
                return self.called(node, [], [])
            case ast.Call(func=ast.Name() | ast.Attribute() as function, args=arguments, keywords=keywords):
                return self.called(function, arguments, keywords)
            case ast.Subscript(value=ast.Name(id=name), slice=shape) if name in DTYPES:
                sizes = self.value(shape)
                return self.attempt(lambda: _without_entries(DTYPES[name], sizes), node)
            case ast.Attribute():
                self.fail('expected "("', (node.end_col_offset or 1) - 1)
        self.fail("expected a mask or a value", node)

    def mask(self, node: ast.expr) -> Mask:
        value = self.value(node)
        return value if isinstance(value, Mask) else self.fail(f"expected a mask, got {str(value)[:40]}", node)

    def called(self, node: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Any:
        """A class, a dtype, or what stands after a dot: a recipe, a classmethod that makes a mask, a method of one."""
        known: Mapping[str, Callable[..., Any]]
        match node:
            case ast.Name(id=name) if name in self.functions:
                self.fail('expected "." and the name of a recipe', node.col_offset - 1 + len(name))
            case ast.Name(id=name):
                what, known = "mask", self.classes
                if name in DTYPES:
                    known = {name: partial(_exactly, DTYPES[name])}
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in self.functions:
                what, known = "recipe", self.functions[owner]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if name in makers(self.classes.get(owner, Mask)):
                what, known = "method", {name: getattr(self.classes[owner], name)}
            case ast.Attribute(value=value, attr=name):
                mask = self.mask(value)
                what, known = "method", {method: getattr(mask, method) for method in METHODS}
        place = (node.end_col_offset or 1) - 1 - len(name)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            listed = ", ".join(sorted(filter(str.islower, known)))
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed}"
            self.fail(f"there is no {what} {name[:40]!r}; {hint}", place)
        named: dict[str, Any] = {}
        for argument in keywords:
            if argument.arg in named:
                self.fail(f"{argument.arg} is given twice", argument)
            named[str(argument.arg)] = self.value(argument.value)
        positional = [self.value(argument) for argument in arguments]
        signature = inspect.signature(known[name])
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            names = ", ".join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
            self.fail(f"{name}({names}): {error}", place)
        return self.attempt(lambda: known[name](*positional, **named), place)

    def attempt(self, make: Callable[[], Any], place: int | ast.expr) -> Any:
        try:
            return make()
        except (ValueError, TypeError, OverflowError) as error:
            self.fail(str(error), place)

    def fail(self, problem: str, place: int | ast.expr | ast.keyword) -> NoReturn:
        """Raise, with the line of the text and a caret under the place: that of a node is where it begins."""
        place = place if isinstance(place, int) else place.col_offset - 1
        first = self.text.rfind("\n", 0, place) + 1
        line, column, row = self.text[first:].split("\n", 1)[0], place - first, self.text.count("\n", 0, place)
        begin = max(0, column - 70)
        shown = "".join(c if c.isprintable() else " " for c in line[begin : begin + 100])
        where = f"column {column + 1}" if "\n" not in self.text else f"line {row + 1}, column {column + 1}"
        before, after = "..." if begin else "", "..." if begin + 100 < len(line) else ""
        caret = " " * (len(before) + column - begin) + "^"
        raise ValueError(f"masks.parse: {where}: {problem}\n  {before}{shown}{after}\n  {caret}") from None


def _without_entries(dtype: np.dtype[Any], shape: object) -> np.ndarray:
    """int32[0, 4]: an array that has no entries is its dtype and shape."""
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("expected a shape after the dtype")
    if math.prod(shape):
        raise ValueError("these data were left out when the mask was printed; to_json keeps them")
    return np.empty(shape, dtype)


def _exactly(dtype: np.dtype[Any], entries: object) -> np.ndarray:
    """The array of `dtype` with exactly these entries."""
    if isinstance(entries, Mask):
        raise TypeError(f"{dtype} needs numbers")
    array = np.array(entries)
    if array.dtype.kind not in ("b" if dtype.kind == "b" else "iu"):
        raise TypeError(f"{dtype} cannot hold {array.dtype} entries")
    if not np.array_equal(array.astype(dtype), array):
        raise ValueError(f"an entry does not fit in {dtype}")
    return array.astype(dtype)
