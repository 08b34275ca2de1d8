"""The results of a checkpoint as a table, a line per layer, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
from rich.console import Console
from rich.text import Text

from maskattn.parity.checkpoint.result import CheckpointResult, Judged, LayerResult
from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import finite, mark, print_table, say, share_text


def render(result: CheckpointResult, console: Console, *, wide: bool = False) -> None:
    """The table and the verdict, which names the first layer and tensor that differ."""
    pattern, labels = _labels([layer.layer for layer in result.layers])
    say(console, f"{result.checkpoint}, layout {result.layout}, layers {pattern}*\n{result.inputs}")
    errors = _errors(result.layers[0], wide) if result.layers else {}
    headings = ["\nlayer", "bits\ndiffer", "alone\ndiffer", *errors, *["\nlimit"] * wide, "error/\nlimit", ""]
    rows = [_row(layer, label, wide) for layer, label in zip(result.layers, labels, strict=True)]
    print_table(console, headings, rows, wide=wide)
    each = "under each kernel, and the lowest limit at those places (each number is held to its own)"
    say(
        console,
        "bits differ: numbers in which the twins' outputs differ, exact kernel. alone: each sequence by itself, "
        "without padding, gives the bits of its rows in the padded batch, exact kernel, both twins. torch, jax: the "
        f"largest difference from the output of {result.judge}{', ' + each if wide else ' under any kernel'}. "
        "error/limit: the largest as a share of its limit.",
        "dim",
    )
    weights = [finding for layer in result.layers for finding in layer.weights]
    same = sum(finding.held for finding in weights)
    say(console, f"weights: {same} of {len(weights)} tensors in the live modules are the file's, byte for byte")
    if result.against is not None:
        said = result.against_difference
        verdict = "the same tensors, byte for byte" if said is None else f"differs at {said}"
        say(console, f"against {result.against}: {verdict}", "red" if said else "green")
    if result.exit_code == 0:
        numbers = sum(layer.twins.elements for layer in result.layers)
        said = f"{len(result.layers)} attention layers, {numbers:,} numbers of output bit-equal in both twins: all held"
        say(console, said, "bold green")
    else:
        at = f", first at {result.first_difference}" if result.layers else ": no layer was compared"
        say(console, f"FAILED{at}", "bold red")


def _errors(layer: LayerResult, wide: bool) -> dict[str, Text]:
    """The largest error of each twin, by the heading of its column: under each kernel, or under any."""
    kinds: dict[str, list[Judged]] = {}
    for judged in layer.judged:
        kinds.setdefault(f"{judged.twin}\n{judged.kernel}" if wide else f"\n{judged.twin}", []).append(judged)
    return {name: mark(f"{np.max([j.error for j in of]):.1e}", all(j.held for j in of)) for name, of in kinds.items()}


def _row(layer: LayerResult, label: str, wide: bool) -> list[str | Text]:
    alone = sum(finding.differing for finding in layer.alone)
    return [
        label or "(root)",
        mark(f"{layer.twins.differing:,}", layer.twins.held),
        mark(f"{alone:,}", all(finding.held for finding in layer.alone)),
        *_errors(layer, wide).values(),
        *[f"{min(judged.limit for judged in layer.judged):.1e}"] * wide,
        share_text(max(judged.share for judged in layer.judged)),
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


def _labels(names: list[str]) -> tuple[str, list[str]]:
    """What all names begin with, and the rest of each, without what all end with."""
    if len(names) < 2:
        return "", names
    start = os.path.commonprefix(names)
    end = os.path.commonprefix([name[len(start) :][::-1] for name in names])[::-1]
    return start, [name[len(start) : len(name) - len(end)] for name in names]
