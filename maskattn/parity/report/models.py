"""Whole models against transformers as a table on the terminal, as a page, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console

from maskattn.parity.models.run import COLUMNS, Row
from maskattn.parity.report.environment import environment
from maskattn.parity.report.page import page, table, text
from maskattn.parity.report.table import Mark, print_table, say, share_text


def render(rows: Sequence[Row], columns: Sequence[str], console: Console, *, wide: bool = False) -> None:
    """A line for each model, with the largest error of each cell by its limit; then what failed, and where."""
    print_table(console, _headings(columns), [_line(row, columns) for row in rows], wide=wide)
    say(console, ABOUT, "dim")
    for failure in failures(rows):
        say(console, failure, "bold red")
    say(console, verdict(rows), "bold green" if _held(rows) else "bold red")


def _headings(columns: Sequence[str]) -> list[str]:
    return ["model", *columns, ""]


def _line(row: Row, columns: Sequence[str]) -> list[str | Mark]:
    cells = (row.cells.get(column) for column in columns)
    figures = ["-" if cell is None else Mark(share_text(cell.share), cell.held) for cell in cells]
    return [row.name, *figures, "held" if row.held else "FAILED"]


#: What the figures are.
ABOUT = (
    "each figure: the largest error as a share of its limit, over both twins, all layers and parameters, and batches "
    "padded on either side"
)


def failures(rows: Sequence[Row]) -> list[str]:
    """What did not hold, and where; what was not run, and why."""
    found = [f"{row.name}: {row.error}" for row in rows if row.error]
    for row in rows:
        found += [f"{row.name}, {column}: {c.what}" for column, c in row.cells.items() if c is not None and not c.held]
    return found


def verdict(rows: Sequence[Row]) -> str:
    """All in a line."""
    failed = sum(not row.held for row in rows)
    return f"FAILED: {failed} of {len(rows)} models" if failed or not rows else f"{len(rows)} models: all held"


def _held(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(row.held for row in rows)


def as_json(rows: Sequence[Row]) -> str:
    """The same as data, with the machine and the versions."""
    made = [
        {
            "model": row.name,
            "held": row.held,
            "error": row.error,
            "cells": {name: None if cell is None else dataclasses.asdict(cell) for name, cell in row.cells.items()},
        }
        for row in rows
    ]
    return json.dumps({"rows": made, "environment": environment()}, indent=1)


def as_html(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The same as a page that needs nothing else."""
    listed = "".join(f"<p><b>{column}</b>: {text(COLUMNS[column])}</p>" for column in columns)
    shares = [cell.share for row in rows for cell in row.cells.values() if cell is not None]
    lines = [_line(row, columns) for row in sorted(rows, key=lambda row: row.held)]
    return page(
        "maskattn parity models",
        verdict(rows),
        "held" if _held(rows) else "FAILED",
        f"<h2>By model</h2><p>{text(ABOUT)}</p>{listed}{table('By model', _headings(columns), lines)}",
        facts={
            "models": str(len(rows)),
            "failed": str(sum(not row.held for row in rows)),
            "largest error / limit": share_text(max(shares, default=0.0)),
        },
        failures=failures(rows),
    )
