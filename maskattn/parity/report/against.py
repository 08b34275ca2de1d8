"""The matrix against another library as a table on the terminal, as a page of the docs, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console

from maskattn.parity.against.families import FAMILIES
from maskattn.parity.against.run import COLUMNS, NOT_DECODED, Row
from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import Mark, print_table, say, share_text


def render(rows: Sequence[Row], console: Console, *, wide: bool = False) -> None:
    """A line for each family, with the largest error of each cell by its limit; what failed; why cells differ."""
    lines = []
    for row in rows:
        cells = ["-" if cell.share is None else Mark(share_text(cell.share), cell.held) for cell in row.cells.values()]
        lines.append([row.family, *cells, "held" if row.held else "FAILED"])
    print_table(console, ["family", *COLUMNS, ""], lines, wide=wide)
    say(
        console,
        "each figure: the largest error as a share of its limit, over layers, both twins and all numbers",
        "dim",
    )
    for row in rows:
        for cell in row.cells.values():
            if not cell.held:
                say(console, f"{row.family}, {cell.column}: {cell.what}", "bold red")
            elif cell.reason and cell.share is not None:
                say(console, f"{row.family}, {cell.column}: {cell.reason}", "dim")
    failed = sum(not row.held for row in rows)
    verdict = f"FAILED: {failed} of {len(rows)} families" if failed else f"{len(rows)} families: all held"
    say(console, verdict, "bold red" if failed else "bold green")


def as_json(rows: Sequence[Row]) -> str:
    """The same as data, with the machine and the versions."""
    made = [{"family": row.family, "held": row.held, "cells": _cells(row)} for row in rows]
    return json.dumps({"rows": made, "environment": environment()}, indent=1)


def _cells(row: Row) -> list[dict[str, object]]:
    return [dataclasses.asdict(cell) | {"held": cell.held} for cell in row.cells.values()]


def as_page(rows: Sequence[Row]) -> str:
    """docs/against-huggingface.md, whole."""
    listed = "\n".join(f"- **{column}**: {says}." for column, says in COLUMNS.items())
    table = ["| family | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    reasons: dict[str, int] = {}
    for row in rows:
        cells = []
        for cell in row.cells.values():
            if cell.reason and cell.reason != NOT_DECODED:
                cells.append(f"no ({reasons.setdefault(cell.reason, len(reasons) + 1)})")
            else:
                cells.append("-" if cell.reason else cell.says)
        table.append(f"| {row.family} (`{FAMILIES[row.family].model}`) | " + " | ".join(cells) + " |")
    notes = "\n".join(f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in reasons.items())
    return _PAGE.format(columns=listed, table="\n".join(table), notes=notes)


_PAGE = """# Against Hugging Face

`maskattn parity against huggingface` compares the attention layers of transformers' own models with both twins, and
wrote this page (`--page`). Each model is made at random from a small configuration, with every parameter drawn: fresh
norms are ones, and biases zeros, which hide how they are used. Its layers run inside the model, by eager attention, on
a batch with padding; each layer's inputs, output and gradients are taken there.

The twins' layer is `AttentionConfig.from_hf(config, layer)`, and its weights are the model's. Rows that are padding are
not compared. Everything is in float32, and the limits are those that a float64 oracle of the layer derives for each
number: what Hugging Face's arithmetic may be off plus what ours may be.

{columns}

{table}

`-`: the family does not write token by token. Where a cell says no:

{notes}

## Another family

A row in `maskattn/parity/against/families.py` compares one more, and a row in `maskattn/layer/from_hf/` makes its
layers known; neither touches a module. A row of one's own, outside of this library:

```python
>>> from maskattn import AttentionConfig
>>> from maskattn.layer import from_hf
>>> from_hf.register("my_model", {{**from_hf.ROWS["llama"], "softcap": from_hf.Key("my_softcap", default=None)}})
>>> config = {{"model_type": "my_model", "hidden_size": 64, "num_attention_heads": 4, "my_softcap": 20.0}}
>>> AttentionConfig.from_hf(config, 0)
AttentionConfig(64, 4, qkv_bias=False, out_bias=False, softcap=20.0, rotary=Rotary())
>>> del from_hf.ROWS["my_model"]

```
"""
