"""`maskattn parity models`: whole models of transformers in both twins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskattn.cli.parity import _options

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]


@click.command(name="models")
@click.option("--types", "pattern", metavar="GLOB", help="Only models whose name matches, or contains, this.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "all"]), default="all", show_default=True, help="What is run."
)
@click.option(
    "--released", "real", is_flag=True, help="Two real models in place of the tiny ones: all-MiniLM-L6-v2 and SmolLM2."
)
@_options.json
@click.option("--html", "html_path", type=_options.NewFile(), help="Write the results here as a page.")
@click.option("--page", type=_options.NewFile(), help="Write the page of the docs, docs/models-table.md, here.")
@_options.wide
def command(
    pattern: str | None,
    dtype: str,
    real: bool,
    json_path: Path | None,
    html_path: Path | None,
    page: Path | None,
    wide: bool,
) -> None:
    """Prove it on whole models.

    Tiny models of transformers, every number of them drawn, run beside both twins built from the table of their type:
    hidden states of each layer, logits, pooled vectors and gradients of every parameter, padded on either side.
    With --released: sentence embeddings of all-MiniLM-L6-v2, and what SmolLM2-135M-Instruct writes.

    Exit code 0: every model ran and held. 1: something differs. 2: nothing was proven.
    """
    from rich.console import Console

    from maskattn.cli._progress import counting
    from maskattn.parity.models.run import COLUMNS, DTYPES, chosen, matrix
    from maskattn.parity.report import models as report
    from maskattn.parity.report.page import write_text
    from maskattn.parity.report.table import say

    console = Console()
    if real:
        raise SystemExit(_real(console, wide))
    columns = tuple(COLUMNS) if dtype == "all" else DTYPES[dtype]
    rows = []
    try:
        names = chosen(pattern)
        with counting(console) as bar:
            task = bar.add_task("loading", total=len(names))
            for row in matrix(names, columns, lambda name: bar.update(task, description=name)):
                rows.append(row)
                bar.advance(task)
    except (ImportError, OSError, ValueError) as error:
        say(console, f"nothing was proven: {error}", "bold red")
        raise SystemExit(2) from error
    report.render(rows, columns, console, wide=wide)
    with _options.writing():
        if json_path is not None:
            json_path.write_text(report.as_json(rows), encoding="utf-8")
        if html_path is not None:
            write_text(report.as_html(rows, columns), html_path)
        if page is not None:
            from maskattn.parity.report.models_page import as_page

            page.write_text(as_page(rows), encoding="utf-8")
    raise SystemExit(0 if rows and all(row.held for row in rows) else 1)


def _real(console: Console, wide: bool) -> int:
    """The exit code of two real models."""
    from maskattn.cli._progress import spinning
    from maskattn.parity.models.real import Fact, facts
    from maskattn.parity.report.table import Mark, print_table, say

    found: list[Fact] = []
    try:
        with spinning(console) as bar:
            task = bar.add_task("loading")
            found += facts(lambda what: bar.update(task, description=what))
    except (ImportError, OSError, ValueError) as error:
        say(console, f"nothing was proven: {error}", "bold red")
        return 2
    lines = [[each.model, each.what, Mark(each.figure, each.held), "held" if each.held else "FAILED"] for each in found]
    print_table(console, ["model", "what", "found", ""], lines, wide=wide)
    return 0 if all(each.held for each in found) else 1
