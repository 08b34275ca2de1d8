"""Tables and lines of text that can be read whole at any width: no figure is cut, none is broken over two lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from maskattn._text import wrapped

_STYLES = {"held": "green", "caught": "green", "FAILED": "bold red", "MISSED": "bold red", "partly": "yellow"}
_WORD = 12  # how narrow a column of words may become


class Mark(NamedTuple):
    """A figure, and whether it kept its limit."""

    figure: str
    held: bool


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Mark]],
    *,
    wide: bool,
    words: int = 1,
    total: bool = False,
) -> None:
    """A table.

    Args:
        rows: a cell for each heading.
        wide: in as many columns of the console as it needs; otherwise in those there are, as far as figures fit.
        words: how many columns at the left hold words, which may be wrapped; all others hold figures or verdicts.
        total: whether the last row sums up the others.
    """
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    lines = [[_text(cell) for cell in row] for row in rows]
    cells = list(zip(*lines, strict=True)) or [()] * len(headings)
    longest = [max(map(len, (*heading.split("\n"), *column))) for heading, column in zip(headings, cells, strict=True)]
    for heading, length in zip(headings[:words], longest, strict=False):
        table.add_column(heading, overflow="fold", min_width=min(length, _WORD))
    for heading, length in zip(headings[words:], longest[words:], strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=length)
    for number, line in enumerate(lines):
        if total and number == len(lines) - 1:
            table.add_section()
        table.add_row(*line)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    least = needed - sum(max(length - _WORD, 0) for length in longest[:words])
    table.width = needed if wide else max(least, min(needed, console.width))
    console.print(table, crop=False)


def _text(cell: str | Mark) -> Text:
    if isinstance(cell, str):
        return Text(cell, _STYLES.get(cell, ""))
    return Text(cell.figure, "green" if cell.held else "bold red")


def share_text(number: float) -> str:
    """An error as a share of its limit."""
    return f"{number:.3f}" if number < 1000 else f"{number:.0e}"


def say(console: Console, text: str, style: str | None = None) -> None:
    """Lines of text as they are, broken between words only: a name or path that is longer than a line stays whole."""
    console.print(wrapped(text, console.width, 0), style=style, highlight=False, markup=False, soft_wrap=True)


def finite(data: object) -> Any:
    """Data for JSON: an infinity, or what is no number, has no word there and becomes None."""
    if isinstance(data, dict):
        return {name: finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and data - data != 0 else data
