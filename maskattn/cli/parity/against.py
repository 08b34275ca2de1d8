"""`maskattn parity against huggingface`: the attention layers of another library's models in both twins."""

from __future__ import annotations

from pathlib import Path

import click

from maskattn.cli.parity import _options

__all__ = ["command"]


@click.command(name="against")
@click.argument("library", type=click.Choice(["huggingface"]))
@click.option("--types", "pattern", metavar="GLOB", help="Only families whose name matches, or contains, this.")
@click.option("--page", type=_options.NewFile(), help="Write the page of the docs, docs/against-huggingface.md, here.")
@_options.json
@_options.wide
def command(library: str, pattern: str | None, page: Path | None, json_path: Path | None, wide: bool) -> None:
    """Prove it on another library's models.

    Small models of Hugging Face, made at random, run by their own attention; each of their layers is compared with both
    twins: weights, output, masks, gradients and decoding.

    Exit code 0: every cell is as the matrix says. 1: something differs. 2: nothing was proven.
    """
    from rich.console import Console

    from maskattn.cli._progress import spinning
    from maskattn.parity.against.run import chosen, matrix
    from maskattn.parity.report import against as report
    from maskattn.parity.report.table import say

    console = Console()
    try:
        names = chosen(pattern)
        with spinning(console) as bar:
            task = bar.add_task("loading")
            rows = list(matrix(names, lambda name: bar.update(task, description=name)))
    except (ImportError, OSError, ValueError) as error:
        say(console, f"nothing was proven: {error}", "bold red")
        raise SystemExit(2) from error
    report.render(rows, console, wide=wide)
    with _options.writing():
        if json_path is not None:
            json_path.write_text(report.as_json(rows), encoding="utf-8")
        if page is not None:
            page.write_text(report.as_page(rows), encoding="utf-8")
    raise SystemExit(0 if all(row.held for row in rows) else 1)
