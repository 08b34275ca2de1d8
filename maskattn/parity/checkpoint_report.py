"""The results of a checkpoint as a table, a line per layer, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from maskattn.parity.checkpoint import CheckpointResult, LayerResult
from maskattn.parity.report import environment


def render(result: CheckpointResult, console: Any) -> None:
    """The table and the verdict, which names the first layer and tensor that differ."""
    from rich.table import Table

    table = Table(
        title=f"{result.checkpoint} ({result.layout}): {result.inputs}", title_justify="left", header_style="bold"
    )
    table.add_column("attention layer", no_wrap=True)
    for column in ("weights", "twins, exact: bits differ", "alone = in the batch"):
        table.add_column(column, justify="right")
    kernels = list(dict.fromkeys((judged.twin, judged.kernel) for layer in result.layers for judged in layer.judged))
    for twin, kernel in kernels:
        table.add_column(f"{twin} {kernel}\nerror / limit", justify="right", no_wrap=True)
    for layer in result.layers:
        table.add_row(*_cells(layer))
    console.print(table)
    console.print(
        f"error / limit: largest difference from the {result.judge}'s output, and what it may be at that place. "
        "weights: tensors in the live modules that are the file's, byte for byte. alone: each sequence by itself, "
        "without padding, against its rows in the padded batch, exact kernel, both twins.",
        style="dim",
        markup=False,
    )
    if result.against is not None:
        same = result.against_difference is None
        said = "the same tensors, byte for byte" if same else f"differs at {result.against_difference}"
        console.print(f"against {result.against}: {said}", style="green" if same else "red", markup=False)
    if result.exit_code == 0:
        console.print(f"{len(result.layers)} attention layers: all held", style="bold green")
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


def _cells(layer: LayerResult) -> list[str]:
    same = sum(finding.held for finding in layer.weights)
    alone = sum(finding.differing for finding in layer.alone)
    cells = [
        layer.layer or "(root)",
        _colour(f"{same} of {len(layer.weights)}", same == len(layer.weights)),
        _colour(f"{layer.twins.differing:,} of {layer.twins.elements:,}", layer.twins.held),
        _colour("yes" if not alone else f"{alone:,} differ", all(finding.held for finding in layer.alone)),
    ]
    return cells + [_colour(f"{judged.error:.2e} / {judged.limit:.2e}", judged.held) for judged in layer.judged]


def _colour(text: str, good: bool) -> str:
    return f"[{'green' if good else 'bold red'}]{text}[/]"
