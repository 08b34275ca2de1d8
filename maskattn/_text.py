"""Text for people, at any width."""

from __future__ import annotations

import textwrap
from typing import Any


def wrapped(text: str, width: int, indent: int = 2) -> str:
    """Each line of the text in lines of at most `width` characters, those that follow `indent` deeper than the first.

    Lines are broken between words only: a name or a path that is longer than a line stays whole.

    >>> print(wrapped("density     49.07 % (44,160 of 90,000 pairs)", 32, 12))
    density     49.07 % (44,160 of
                90,000 pairs)
    """
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    lines = []
    for line in text.splitlines():
        deeper = " " * (len(line) - len(line.lstrip()) + indent)
        lines.append(textwrap.fill(line, width, subsequent_indent=deeper, **options))
    return "\n".join(lines)
