"""The matrix against other libraries as a table on the terminal, as a page of the docs, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from maskattn.parity.against.libraries.cases import PEERS
from maskattn.parity.against.libraries.differences import Difference
from maskattn.parity.against.libraries.run import COLUMNS, Row
from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import Mark, print_table, say, share_text


def render(
    rows: Sequence[Row], differences: Sequence[tuple[Difference, bool]], console: Console, *, wide: bool = False
) -> None:
    """A line for each case, with the largest error of each cell by its limit; then what is known to differ."""
    lines = []
    for row in rows:
        cells = ["-" if cell is None else Mark(share_text(cell[0]), cell[0] <= 1) for cell in row.cells.values()]
        lines.append([_named(row.case.peer), row.case.name, *cells, "held" if row.held else "FAILED"])
    print_table(console, ["peer", "argument", *COLUMNS, ""], lines, wide=wide)
    say(console, "each figure: the largest error as a share of its limit, over output and gradients", "dim")
    for row in rows:
        for column, cell in row.cells.items():
            if cell is not None and not cell[0] <= 1:
                say(console, f"{_named(row.case.peer)}, {row.case.name}, {column}: {cell[1]}", "bold red")
    for each, held in differences:
        if not held:
            say(console, f"{each.peer}, {each.about}: no longer {each.theirs} there and {each.ours} here", "bold red")
    failed = sum(not row.held for row in rows) + sum(not held for _, held in differences)
    whole = f"{len(rows)} rows and {len(differences)} known differences"
    verdict = f"FAILED: {failed} of {whole}" if failed else f"{whole}: all as listed"
    say(console, verdict, "bold red" if failed else "bold green")


def as_json(rows: Sequence[Row], differences: Sequence[tuple[Difference, bool]]) -> str:
    """The same as data, with the machine and the versions."""
    made = [
        {
            "peer": _named(row.case.peer),
            "argument": row.case.name,
            "held": row.held,
            "cells": {
                column: None if cell is None else {"share": cell[0], "what": cell[1]}
                for column, cell in row.cells.items()
            },
        }
        for row in rows
    ]
    known = [
        {"peer": each.peer, "about": each.about, "theirs": each.theirs, "ours": each.ours, "held": held}
        for each, held in differences
    ]
    return json.dumps({"rows": made, "differences": known, "environment": environment()}, indent=1)


def as_page(rows: Sequence[Row], differences: Sequence[tuple[Difference, bool]]) -> str:
    """docs/against-libraries.md, whole."""
    listed = "\n".join(f"- **{column}**: {says}." for column, says in COLUMNS.items())
    table = ["| called | argument | " + " | ".join(COLUMNS) + " |", "| --- | --- |" + " --- |" * len(COLUMNS)]
    for peer in PEERS:
        for row in rows:
            if row.case.peer == peer:
                cells = ["-" if cell is None else _word(cell[0] <= 1, "holds") for cell in row.cells.values()]
                table.append(f"| `{_named(peer)}` | {row.case.name} | " + " | ".join(cells) + " |")
    known = ["| called | about | there | here |", "| --- | --- | --- | --- |"]
    for each, held in differences:
        known.append(f"| `{each.peer}` | {each.about} | {each.theirs} | {_word(held, each.ours)} |")
    return _PAGE.format(columns=listed, table="\n".join(table), known="\n".join(known))


def _named(peer: str) -> str:
    return peer.removeprefix("module ").replace("torch scaled", "torch.nn.functional.scaled")


def _word(held: bool, word: str) -> str:
    return word if held else "FAILED"


_PAGE = """# Against PyTorch, Flax and jax.nn

`maskattn parity against libraries` compares the attention of PyTorch, of Flax and of `jax.nn`, over their own
arguments, with both twins, and wrote this page (`--page`). Weights are drawn, and go from the canonical tensors into
the library's module and into ours (`params.load`); gradients come back the same way (`params.dump`). Everything is in
float32, in small sizes, and the limits are those that a float64 oracle of the layer derives for each number.

{columns}

{table}

`-`: there is none: `maskattn_jax.attention_fn` has the arguments of Flax, not those of `jax.nn`.

## Known differences

Each is checked: a library that changes what it does here fails the comparison.

{known}
"""
