"""The words and signs of a mask written as text, and errors that point at them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[&|~().,=\[\]-])|(?P<end>\Z))")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Token:
    """A number, a name, a sign, or the end."""

    kind: str
    text: str
    start: int


class Scanner:
    """A text and the token that comes next in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.token = self.read(0)

    def read(self, start: int) -> Token:
        match = _TOKEN.match(self.text, start)
        if match is None or match.lastgroup is None:
            space = _SPACE.match(self.text, start)
            place = start if space is None else space.end()
            self.fail(f"unexpected character {self.text[place]!r}", place)
        kind = match.lastgroup
        return Token(kind, match[kind], match.start(kind))

    def advance(self) -> Token:
        token = self.token
        self.token = self.read(token.start + len(token.text))
        return token

    def accept(self, sign: str) -> bool:
        if self.token.kind == "sign" and self.token.text == sign:
            self.advance()
            return True
        return False

    def fail(self, problem: str, place: int) -> NoReturn:
        """Raise, with the line of the text and a caret under the place."""
        first = self.text.rfind("\n", 0, place) + 1
        line = self.text[first:].split("\n", 1)[0]
        column, row = place - first, self.text.count("\n", 0, place)
        begin = max(0, column - 70)
        shown = "".join(c if c.isprintable() else " " for c in line[begin : begin + 100])
        where = f"column {column + 1}" if "\n" not in self.text else f"line {row + 1}, column {column + 1}"
        before, after = "..." if begin else "", "..." if begin + 100 < len(line) else ""
        caret = " " * (len(before) + column - begin) + "^"
        raise ValueError(f"masks.parse: {where}: {problem}\n  {before}{shown}{after}\n  {caret}")

    def expected(self, what: str) -> NoReturn:
        got = "the end of the text" if self.token.kind == "end" else f'"{self.token.text[:40]}"'
        self.fail(f"expected {what}, got {got}", self.token.start)
