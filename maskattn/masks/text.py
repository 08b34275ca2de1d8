"""Masks written as text, the way `repr` shows them: `parse("causal & window(255, 0)")`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from maskattn.masks._core import Mask, complement, conjunction, disjunction
from maskattn.masks._names import known_classes, makers, snake_case
from maskattn.masks._scan import Scanner, Token
from maskattn.masks._to_json import DTYPES

ALIASES = {"window": "SlidingWindow", "padding": "KeyPadding", "prefix": "PrefixLM", "documents": "Segments"}
CONSTANTS = {"None": None, "none": None, "True": True, "true": True, "False": False, "false": False}
METHODS = ("at", "with_positions")
#: These are written with & | ~ and methods.
_OPERATORS = ("And", "Or", "Not", "At", "Positioned")

MAX_CHARACTERS = 1 << 16
MAX_DEPTH = 50
MAX_OPERANDS = 1000


Functions = Mapping[str, Callable[..., Any]]


def parse(text: str, classes: Iterable[type[Mask]] = (), names: Mapping[str, Functions] | None = None) -> Mask:
    """The mask that a text describes. Nothing is evaluated as Python.

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
    return _Parser(text, known_classes("masks.parse", classes), {"recipes": _recipes(), **(names or {})}).parse()


def _recipes() -> Functions:
    """Reached by name, as recipes are made of masks."""
    module = importlib.import_module("maskattn.recipes")
    return {name: getattr(module, name) for name in module.__all__ if name.islower()}


class _Parser(Scanner):
    def __init__(self, text: str, classes: dict[str, type[Mask]], recipes: Mapping[str, Functions]) -> None:
        super().__init__(text)
        self.recipes = recipes
        self.names = {name: cls for name, cls in classes.items() if name not in _OPERATORS}
        self.names |= {snake_case(name): cls for name, cls in self.names.items()}
        self.names |= {alias: classes[name] for alias, name in ALIASES.items()}
        self.depth = 0
        self.operands = 0

    def parse(self) -> Mask:
        value = self.mask(self.token, self.expression())
        if self.token.kind != "end":
            self.expected('"&", "|" or the end')
        return value

    def mask(self, token: Token, value: Any) -> Mask:
        if not isinstance(value, Mask):
            self.fail(f"expected a mask, got {str(value)[:40]}", token.start)
        return value

    def expression(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep", self.token.start)
        value = self.chain("|", disjunction, lambda: self.chain("&", conjunction, self.unary))
        self.depth -= 1
        return value

    def chain(self, sign: str, combine: Callable[..., Mask], operand: Callable[[], Any]) -> Any:
        start = self.token
        parts = [operand()]
        while self.token.kind == "sign" and self.token.text == sign:
            parts[0] = self.mask(start, parts[0])
            self.operands += 1
            if self.operands > MAX_OPERANDS:
                self.fail(f"more than {MAX_OPERANDS} operators", self.token.start)
            self.advance()
            after = self.token
            parts.append(self.mask(after, operand()))
        return parts[0] if len(parts) == 1 else combine(*parts)

    def unary(self) -> Any:
        flips = 0
        while self.accept("~"):
            flips += 1
        start = self.token
        value = self.postfix()
        if flips:
            value = self.mask(start, value)
        return complement(value) if flips % 2 else value

    def postfix(self) -> Any:
        start = self.token
        value = self.atom()
        while self.accept("."):
            owner, name = self.mask(start, value), self.token
            if name.text not in METHODS:
                self.expected(f"a method ({', '.join(METHODS)})")
            self.advance()
            value = self.call(getattr(owner, name.text), name)
        return value

    def atom(self) -> Any:
        token = self.token
        if self.accept("("):
            return self.parenthesised()
        if self.accept("["):
            return self.items("]")
        if token.kind == "number" or token.text == "-":
            return self.number()
        if token.kind != "name":
            self.expected("a mask or a value" if self.depth > 1 else "a mask")
        self.advance()
        if token.text in CONSTANTS:
            return CONSTANTS[token.text]
        if token.text in DTYPES:
            return self.array(DTYPES[token.text], token)
        if token.text in self.recipes:
            return self.recipe(self.recipes[token.text])
        if token.text not in self.names:
            near = difflib.get_close_matches(token.text, self.names, n=1)
            listed = sorted(name for name in self.names if name.islower())
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(listed)}"
            self.fail(f"there is no mask {token.text[:40]!r}; {hint}", token.start)
        cls = self.names[token.text]
        if self.token.text == ".":
            method = self.read(self.token.start + 1)
            if method.text in makers(cls):
                self.advance()
                self.advance()
                return self.call(getattr(cls, method.text), method)
        if self.token.text != "(":
            return self.apply(cls, token, [], {})
        return self.call(cls, token)

    def recipe(self, functions: Functions) -> Any:
        """.name(arguments) of functions that return masks."""
        if not self.accept("."):
            self.expected('"." and the name of a recipe')
        name = self.token
        if name.text not in functions:
            self.expected(f"a recipe ({', '.join(functions)})")
        self.advance()
        return self.call(functions[name.text], name)

    def number(self) -> int:
        start = self.token
        sign = -1 if self.accept("-") else 1
        digits = self.advance().text if self.token.kind == "number" else self.expected("a number")
        if len(digits) > 19 or int(digits) >= 1 << 63:
            self.fail("this number does not fit in 64 bits", start.start)
        return sign * int(digits)

    def parenthesised(self) -> Any:
        if self.accept(")"):
            return ()
        first = self.expression()
        if self.accept(","):
            return (first, *self.items(")"))
        if not self.accept(")"):
            self.expected('"," or ")"')
        return first

    def items(self, close: str) -> list[Any]:
        found = []
        while not self.accept(close):
            found.append(self.expression())
            if not self.accept(",") and self.token.text != close:
                self.expected(f'"," or "{close}"')
        return found

    def array(self, dtype: np.dtype[Any], token: Token) -> np.ndarray:
        """int32([1, 3]), or the shape alone where there are no entries: int32[0, 4]."""
        if self.accept("["):
            shape = self.items("]")
            if not all(type(n) is int and n >= 0 for n in shape):
                self.fail("expected a shape after the dtype", token.start)
            if math.prod(shape):
                self.fail("these data were left out when the mask was printed; to_json keeps them", token.start)
            return self.attempt(lambda: np.empty(shape, dtype), token)
        if not self.accept("("):
            self.expected(f'"(" or "[" after {token.text}')
        value = self.expression()
        if not self.accept(")"):
            self.expected('")"')
        return self.attempt(lambda: _exactly(value, dtype), token)

    def call(self, function: Callable[..., Any], name: Token) -> Any:
        if not self.accept("("):
            self.expected('"("')
        positional: list[Any] = []
        named: dict[str, Any] = {}
        while not self.accept(")"):
            start = self.token
            keyword = start.kind == "name" and self.read(start.start + len(start.text)).text == "="
            if keyword:
                self.advance()
                self.advance()
                if start.text in named:
                    self.fail(f"{start.text} is given twice", start.start)
                named[start.text] = self.expression()
            elif named:
                self.expected("a keyword argument after a keyword argument")
            else:
                positional.append(self.expression())
            if not self.accept(",") and self.token.text != ")":
                self.expected('"," or ")"')
        return self.apply(function, name, positional, named)

    def apply(self, function: Any, name: Token, positional: list[Any], named: dict[str, Any]) -> Any:
        signature = inspect.signature(function)
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            names = ", ".join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())
            self.fail(f"{name.text}({names}): {error}", name.start)
        return self.attempt(lambda: function(*positional, **named), name)

    def attempt(self, make: Callable[[], Any], name: Token) -> Any:
        try:
            return make()
        except (ValueError, TypeError, OverflowError) as error:
            self.fail(str(error), name.start)


def _exactly(value: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """The array of `dtype` with exactly these entries."""
    if isinstance(value, Mask):
        raise TypeError(f"{dtype} needs numbers")
    array = np.array(value)
    if array.dtype.kind not in ("b" if dtype.kind == "b" else "iu"):
        raise TypeError(f"{dtype} cannot hold {array.dtype} entries")
    if not np.array_equal(array.astype(dtype), array):
        raise ValueError(f"an entry does not fit in {dtype}")
    return array.astype(dtype)
