"""The results of a checkpoint as a table, a line per layer, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from maskattn.parity.checkpoint import CheckpointResult, LayerResult
from maskattn.parity.report import environment


def render(result: CheckpointResult, console: Any) -> None:
    """The table and the verdict, which names the first layer and tensor that differ."""
    from rich import box
    from rich.table import Table

    pattern, labels = _labels([layer.layer for layer in result.layers])
    title = f"{result.checkpoint}, layout {result.layout}, layers {pattern}*\n{result.inputs}"
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("layer", "bits\ndiffer", "alone\nsame"):
        table.add_column(column, justify="right", no_wrap=True)
    columns = dict.fromkeys((judged.twin, judged.kernel) for layer in result.layers for judged in layer.judged)
    for twin, kernel in columns:
        table.add_column(f"{twin}\n{kernel}", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    for layer, label in zip(result.layers, labels, strict=True):
        table.add_row(*_cells(layer, label))
    console.print(table)
    console.print(
        "bits differ: numbers in which the twins' outputs differ, exact kernel. alone: each sequence by itself, "
        "without padding, gives the bits of its rows in the padded batch, exact kernel, both twins. Then each twin's "
        f"largest difference from the output of {result.judge}, and the lowest limit at those places (each "
        "number is held to its own).",
        style="dim",
        markup=False,
    )
    weights = [finding for layer in result.layers for finding in layer.weights]
    same = sum(finding.held for finding in weights)
    console.print(f"weights: {same} of {len(weights)} tensors in the live modules are the file's, byte for byte")
    if result.against is not None:
        said = result.against_difference
        verdict = "the same tensors, byte for byte" if said is None else f"differs at {said}"
        console.print(f"against {result.against}: {verdict}", style="red" if said else "green", markup=False)
    if result.exit_code == 0:
        numbers = sum(layer.twins.elements for layer in result.layers)
        said = f"{len(result.layers)} attention layers, {numbers:,} numbers of output bit-equal in both twins: all held"
        console.print(said, style="bold green")
    elif result.layers:
        console.print(f"FAILED, first at {result.first_difference}", style="bold red", markup=False)
    else:
        console.print("FAILED: no layer was compared", style="bold red")


def as_json(result: CheckpointResult) -> str:
    """The same as data, with the machine and the versions; an error that is no number is null."""
    data = dataclasses.asdict(result) | {
        "first_difference": result.first_difference,
        "exit_code": result.exit_code,
        "environment": environment(),
    }
    return json.dumps(_finite(data), indent=1)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and data - data != 0:  # an infinity or NaN, for which JSON has no word
        return None
    return data


def _labels(names: list[str]) -> tuple[str, list[str]]:
    """What all names begin with, and the rest of each, without what all end with."""
    if len(names) < 2:
        return "", names
    start = os.path.commonprefix(names)
    end = os.path.commonprefix([name[len(start) :][::-1] for name in names])[::-1]
    return start, [name[len(start) : len(name) - len(end)] for name in names]


def _cells(layer: LayerResult, label: str) -> list[str]:
    alone = sum(finding.differing for finding in layer.alone)
    cells = [
        label or "(root)",
        _colour(f"{layer.twins.differing:,}", layer.twins.held),
        _colour(f"{alone:,} differ" if alone else "yes", all(finding.held for finding in layer.alone)),
    ]
    cells += [_colour(f"{judged.error:.1e}", judged.held) for judged in layer.judged]
    return [*cells, f"{min(judged.limit for judged in layer.judged):.1e}"]


def _colour(text: str, good: bool) -> str:
    return f"[{'green' if good else 'bold red'}]{text}[/]"
