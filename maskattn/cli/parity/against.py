"""`maskattn parity against`: the attention of other libraries and of their models in both twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskattn.cli._progress import spinning
from maskattn.cli.parity import _options

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]


@click.command(name="against")
@click.argument("library", type=click.Choice(["huggingface", "libraries"]))
@click.option(
    "--types", "pattern", metavar="GLOB", help="Only families, or arguments, whose name matches or contains this."
)
@click.option("--page", type=_options.NewFile(), help="Write the page of the docs, docs/against-LIBRARY.md, here.")
@_options.json
@_options.wide
def command(library: str, pattern: str | None, page: Path | None, json_path: Path | None, wide: bool) -> None:
    """Prove it on another library's attention.

    huggingface: small models, made at random, run by their own attention; each of their layers is compared with both
    twins: weights, output, masks, gradients and decoding.

    libraries: the attention of PyTorch, of Flax and of jax.nn, over their own arguments, and what is known to differ.

    Exit code 0: every cell is as the matrix says. 1: something differs. 2: nothing was proven.
    """
    from rich.console import Console

    from maskattn.parity.report.table import say

    console = Console()
    try:
        with spinning("loading") as bar:
            made = _MADE[library](pattern, bar.doing)
    except (ImportError, OSError, ValueError) as error:
        say(console, f"nothing was proven: {error}", "bold red")
        raise SystemExit(2) from error
    made.render(console, wide)
    with _options.writing():
        if json_path is not None:
            json_path.write_text(made.as_json(), encoding="utf-8")
        if page is not None:
            page.write_text(made.as_page(), encoding="utf-8")
    raise SystemExit(0 if made.held else 1)


@dataclass(frozen=True)
class _Matrix:
    """A matrix that was run, and how it is told."""

    held: bool
    render: Callable[[Console, bool], None]
    as_json: Callable[[], str]
    as_page: Callable[[], str]


def _huggingface(pattern: str | None, progress: Callable[[str], None]) -> _Matrix:
    from maskattn.parity.against.run import chosen, matrix
    from maskattn.parity.report import against as report

    rows = list(matrix(chosen(pattern), progress))
    return _Matrix(
        all(row.held for row in rows),
        lambda console, wide: report.render(rows, console, wide=wide),
        lambda: report.as_json(rows),
        lambda: report.as_page(rows),
    )


def _libraries(pattern: str | None, progress: Callable[[str], None]) -> _Matrix:
    from maskattn.parity.against.libraries.run import chosen, matrix, seen
    from maskattn.parity.report import libraries as report

    cases, differences = chosen(pattern)
    rows, known = list(matrix(cases, progress)), list(seen(differences, progress))
    return _Matrix(
        all(row.held for row in rows) and all(held for _, held in known),
        lambda console, wide: report.render(rows, known, console, wide=wide),
        lambda: report.as_json(rows, known),
        lambda: report.as_page(rows, known),
    )


_MADE = {"huggingface": _huggingface, "libraries": _libraries}
