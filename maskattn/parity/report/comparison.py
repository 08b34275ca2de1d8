"""A comparison of two programs as tables on the terminal, as a page, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

from rich.console import Console

from maskattn.diagnose import Place, Report
from maskattn.diagnose.report import described, unexplained
from maskattn.parity.report.environment import environment
from maskattn.parity.report.page import folded, page, table, text
from maskattn.parity.report.table import Mark, print_table, say

_HEADINGS = ("", "what JAX does otherwise", "of what was left", "side", "where")


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
    places = "".join(_place(number, place) for number, place in enumerate(report.places, 1))
    outputs = [_apart(one or "-", other or "-", error, report.tolerance) for one, other, error in report.outputs]
    limit = 10 * report.tolerance
    gradients = [_apart(one.torch, one.jax, one.error, limit) for one in report.gradients]
    off = [_apart(one.torch, one.jax, one.error, limit) for one in report.differing]
    pairs = [[pair.torch, pair.jax, pair.how, pair.detail, pair.rounded] for pair in report.parameters.pairs]
    notes = "".join(f"<p>{text(one)}</p>" for one in report.remarks())
    apart = ("PyTorch", "JAX", "largest difference")
    matched = ("PyTorch", "JAX", "how", "where, by what", "rounded to")
    body = (
        (f'<h2>Where they part</h2><ol class="places">{places}</ol>' if places else "")
        + (f"<h2>What to know of it</h2>{notes}" if notes else "")
        + (f"<h2>Outputs</h2>{table('Outputs', apart, outputs, words=2)}" if outputs else "")
        + (f"<h2>Gradients that differ</h2>{table('Gradients that differ', apart, off, words=2)}" if off else "")
        + (folded("Gradients", len(gradients), table("Gradients", apart, gradients, words=2)) if gradients else "")
        + (folded("Parameters", len(pairs), table("Parameters", matched, pairs, words=5)) if pairs else "")
    )
    facts = {
        "largest difference": f"{report.error:.1e}",
        "tolerance": f"{report.tolerance:.0e}",
        "places": str(len(report.places)),
        "explained": str(len(report.diagnosis)),
    }
    return page(
        "maskattn compare",
        report.verdict,
        "held" if report.ok else "FAILED",
        body,
        about=f"A PyTorch program and a JAX program on the same inputs. Parameters: {parameters(report)}.",
        facts=facts | ({"gradients that differ": str(len(report.differing))} if report.gradients else {}),
        failures=list(report.findings()),
        failed="Parameters that differ",
    )


def _apart(torch: str, jax: str, error: float, limit: float) -> list[str | Mark]:
    return [torch, jax, Mark(f"{error:.1e}", error <= limit)]


def _place(number: int, place: Place) -> str:
    """What is done otherwise, how much of the difference it is, and the code of both sides."""
    share = f"{100 * place.share:.3g} %" if place.share > 1e-6 else "Nothing"
    left = f"<p>{share} of the difference of the outputs is left when PyTorch does the same.</p>"
    said = f"<h3>{number}. {text(place.diagnosis or unexplained(place))}</h3>"
    said += left if place.diagnosis and not place.backward else ""
    sides = "".join(f"<dt>{side}</dt><dd><code>{text(at)}</code></dd>" for side, at in described(place))
    return f'<li class="card">{said}<dl class="sides">{sides}</dl></li>'
