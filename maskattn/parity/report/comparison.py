"""A comparison of two programs as tables on the terminal, as a page, and as JSON."""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from maskattn.diagnose import Place, Report
from maskattn.diagnose.report import described, unexplained
from maskattn.parity.report.environment import environment
from maskattn.parity.report.page import page
from maskattn.parity.report.table import print_table, say

_HEADINGS = ("", "what JAX does otherwise", "of the difference", "side", "where")


def render(report: Report, console: Console, *, wide: bool = False) -> None:
    """The places, each with the code of both sides; then parameters, what could not be seen, and the verdict."""
    if report.places:
        lines = [line for number, place in enumerate(report.places, 1) for line in _lines(number, place)]
        print_table(console, _HEADINGS, lines, wide=wide, words=5)
    for line in report.gradients_said():
        say(console, line, "red")
    for finding in report.findings():
        say(console, f"parameters: {finding}", "red")
    say(console, f"parameters: {parameters(report)}", "dim")
    for remark in report.remarks():
        say(console, f"note: {remark}", "yellow")
    say(console, report.verdict, "bold green" if report.ok else "bold red")


def parameters(report: Report) -> str:
    """How many of them were found on the other side, and how, in a line."""
    counts = Counter(pair.how for pair in report.parameters.pairs)
    alike = sum(len(one.torch) for one in report.parameters.alike)
    said = [f"{count} {how}" for how, count in counts.items()] + ([f"{alike} of one number"] if alike else [])
    return f"of the PyTorch side, {', '.join(said) or 'none'}"


def _lines(number: int, place: Place) -> list[list[str]]:
    """A line of a table for each operation of a place."""
    left = f"{100 * (1 - place.share):.4g} %" if place.diagnosis and not place.rounding else "-"
    said = place.diagnosis or unexplained(place)
    found = [[side, where] for side, where in described(place)] or [["-", "-"]]
    first = [[str(number), said, left, *found[0]]]
    return first + [["", "", "", *each] for each in found[1:]]


def as_json(report: Report) -> str:
    """The same as data, with the machine and the versions."""
    made = {
        "ok": report.ok,
        "verdict": report.verdict,
        "error": report.error,
        "tolerance": report.tolerance,
        "places": [dataclasses.asdict(place) for place in report.places],
        "outputs": [{"torch": one, "jax": other, "error": error} for one, other, error in report.outputs],
        "gradients": [dataclasses.asdict(one) for one in report.gradients],
        "parameters": [
            {field.name: getattr(pair, field.name) for field in dataclasses.fields(pair) if field.name != "places"}
            for pair in report.parameters.pairs
        ],
        "findings": list(report.findings()),
        "notes": list(report.remarks()),
        "environment": environment(),
    }
    return json.dumps(made, indent=1)


def as_html(report: Report) -> str:
    """The same as a page that needs nothing else."""
    places = [line for number, place in enumerate(report.places, 1) for line in _lines(number, place)]
    outputs = [[one or "-", other or "-", f"{error:.1e}"] for one, other, error in report.outputs]
    gradients = [[one.torch, one.jax, f"{one.error:.1e}"] for one in report.gradients]
    pairs = [[pair.torch, pair.jax, pair.how, pair.detail, pair.rounded] for pair in report.parameters.pairs]
    notes = "".join(f"<p>{html.escape(one)}</p>" for one in report.remarks())
    body = (
        _table("Where they part", _HEADINGS, places)
        + (f"<h2>What to know of it</h2>{notes}" if notes else "")
        + _table("Outputs", ("PyTorch", "JAX", "largest difference"), outputs)
        + _table("Gradients", ("PyTorch", "JAX", "largest difference"), gradients)
        + _table("Parameters", ("PyTorch", "JAX", "how", "where, by what", "rounded to"), pairs)
    )
    return page("maskattn compare", report.verdict, not report.ok, list(report.findings()), body)


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<h2>{title}</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
