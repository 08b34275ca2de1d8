"""The results of a checkpoint: a line for each layer on the terminal, a page, and JSON."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console

from maskattn.parity.checkpoint.result import CheckpointResult, Layer
from maskattn.parity.report.environment import environment
from maskattn.parity.report.page import page, table, text
from maskattn.parity.report.table import Mark, finite, print_table, say, share_text

HEADINGS = {"torch": "PyTorch", "jax": "JAX"}


def render(result: CheckpointResult, console: Console, *, wide: bool = False) -> None:
    """The table and the verdict, which names the first layer that differs."""
    say(console, f"{result.checkpoint}, {result.kind}\n{result.inputs}")
    headings = _headings(result)
    print_table(console, headings, [_row(headings, layer) for layer in result.layers], wide=wide)
    say(console, about(result), "dim")
    for note in result.notes:
        say(console, note)
    if result.against is not None:
        said = result.against_difference
        say(
            console,
            f"against {result.against}: {said or 'the same tensors, byte for byte'}",
            "red" if said else "green",
        )
    say(console, verdict(result), "bold red" if result.exit_code else "bold green")


def about(result: CheckpointResult) -> str:
    """What the figures are."""
    said = (
        f"compared with {result.judge}; kernel {result.kernel}. PyTorch, JAX: how far the twin is off: the largest "
        "difference or the root mean square of all, whichever is nearer to its limit. limit, error/limit: of the twin "
        "that is farther off."
    )
    if not any(layer.own is None for layer in result.layers):
        said += " own: the root mean square of how far what is compared with is off from its float64 run."
    return said


def verdict(result: CheckpointResult) -> str:
    """All in a line."""
    if result.exit_code == 0:
        return f"{len(result.layers)} layers and heads: all held"
    return f"FAILED, first at {result.first_difference}" if result.layers else "FAILED: nothing was compared"


def _headings(result: CheckpointResult) -> list[str]:
    layers = result.layers
    own = ["own"] * any(layer.own is not None for layer in layers)
    exact = ["bits\ndiffer"] * any(layer.differing is not None for layer in layers)
    return [
        "layer",
        *(HEADINGS[twin] for twin in (layers[0].twins if layers else ())),
        *own,
        "limit",
        "error/\nlimit",
        *exact,
        "",
    ]


def _row(headings: list[str], layer: Layer) -> list[str | Mark]:
    farthest = max(layer.twins.values(), key=lambda each: each.share)
    bits = "-" if layer.differing is None else Mark(f"{layer.differing:,}", not layer.differing)
    return [
        layer.name,
        *(Mark(f"{each.error:.1e}", each.held) for each in layer.twins.values()),
        *["-" if layer.own is None else f"{layer.own:.1e}"] * ("own" in headings),
        f"{farthest.limit:.1e}",
        share_text(farthest.share),
        *[bits] * ("bits\ndiffer" in headings),
        "held" if layer.first_difference is None else "FAILED",
    ]


def as_json(result: CheckpointResult) -> str:
    """The same as data, with the machine and the versions; an error that is no number is null."""
    data = dataclasses.asdict(result) | {
        "first_difference": result.first_difference,
        "exit_code": result.exit_code,
        "environment": environment(),
    }
    return json.dumps(finite(data), indent=1)


def as_html(result: CheckpointResult) -> str:
    """The same as a page that needs nothing else."""
    headings = _headings(result)
    rows = [_row(headings, layer) for layer in result.layers]
    said = (result.inputs, about(result), *result.notes)
    if result.against is not None:
        said += (f"against {result.against}: {result.against_difference or 'the same tensors, byte for byte'}",)
    notes = "".join(f"<p>{text(note)}</p>" for note in said)
    shares = [each.share for layer in result.layers for each in layer.twins.values()]
    return page(
        f"{result.checkpoint} ({result.kind})",
        verdict(result),
        "FAILED" if result.exit_code else "held",
        f"<h2>By layer</h2>{notes}{table('By layer', headings, rows)}",
        facts={"layers and heads": str(len(rows)), "largest error / limit": share_text(max(shares, default=0.0))},
        failures=[each.first_difference for each in result.layers if each.first_difference],
    )
