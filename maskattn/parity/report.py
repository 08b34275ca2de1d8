"""A run's results as a table, a line per mask, and as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from maskattn.parity.run import Outcome, Result


@dataclass(frozen=True)
class Line:
    """One family of cases, all implementations together. `worst` is the largest error as a share of its limit."""

    family: str
    cases: int
    elements: int
    differing: int
    worst: float
    p50: float
    p99: float
    highest: float
    equal: float
    status: str
    notes: tuple[str, ...]


def lines(result: Result) -> list[Line]:
    """A line per family in the order in which they ran."""
    families: dict[str, list[Outcome]] = {}
    for outcome in result.outcomes:
        families.setdefault(outcome.case.family, []).append(outcome)
    return [_line(family, outcomes) for family, outcomes in families.items()]


def _line(family: str, outcomes: list[Outcome]) -> Line:
    ulps = np.concatenate([outcome.ulps for outcome in outcomes])
    ulps = ulps[np.isfinite(ulps)]
    judged = sum(outcome.ulps.size for outcome in outcomes)
    shares = [f.worst / f.limit for o in outcomes for f in o.findings if f.limit and f.check in _ERRORS]
    p50, p99 = (float(x) for x in np.percentile(ulps, [50, 99])) if ulps.size else (0.0, 0.0)
    failed = any(outcome.failures for outcome in outcomes)
    not_run = [o for o in outcomes if o.status in ("unsupported", "differs")]
    notes = sorted({f"{o.subject}: {o.status}, {reason}" for o in not_run for reason in o.reasons})
    status = "FAILED" if failed else "partly" if notes else "held"
    if len(not_run) == len(outcomes):
        status = "not run"
    return Line(
        family,
        len({o.case.id for o in outcomes}),
        sum({o.case.id: o.elements for o in outcomes if o.elements}.values()),
        sum(o.differing for o in outcomes),
        max(shares, default=0.0),
        p50,
        p99,
        float(ulps.max(initial=0)),
        sum(o.equal for o in outcomes) / judged if judged else 0.0,
        status,
        tuple(notes),
    )


#: Checks whose `worst` and `limit` are errors.
_ERRORS = ("tier1", "tier2", "plain", "module")


#: By exit code.
VERDICTS = {0: "every case ran and held", 1: "FAILED", 3: "what ran held; not every case ran"}


def render(result: Result, console: Console, *, verbose: bool = False) -> None:
    """The table, the notes on what did not run, and every failure."""
    title = f"kernel {result.kernel}: {', '.join(result.subjects)}"
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("mask", no_wrap=True)
    for column in (
        "\ncases",
        "\nnumbers",
        "bits\ndiffer",
        "error/\nlimit",
        "ulp\np50",
        "\np99",
        "\nmax",
        "equal\n%",
        "",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    found = lines(result)
    for line in found:
        table.add_row(*_cells(line))
    if len(found) > 1:
        table.add_section()
        table.add_row("all", *_totals(result, found))
    console.print(table)
    console.print(
        "error/limit: the largest error as a share of its limit. equal: share of the results that are the "
        "oracle's, rounded. ulps of results below 2^-26 of the largest magnitude are those of that floor.",
        style="dim",
    )
    for note in sorted({note for line in found for note in line.notes}):
        console.print(f"not run: {note}", markup=False)
    failures = result.failures
    for failure in failures if verbose else failures[:20]:
        console.print(failure, style="red", markup=False, highlight=False)
    if len(failures) > 20 and not verbose:
        console.print(f"... and {len(failures) - 20} more (--verbose shows all)", style="red")
    ran = len({o.case.id for o in result.outcomes if o.findings})
    verdict = VERDICTS[result.exit_code]
    console.print(f"{ran} cases, {result.elements:,} numbers compared: {verdict}", style="bold")


def _cells(line: Line) -> list[str]:
    style = {"held": "green", "FAILED": "bold red"}.get(line.status, "yellow")
    measured = line.elements and line.highest + line.equal > 0
    ulps = [_short(x) for x in (line.p50, line.p99, line.highest)] if measured else ["", "", ""]
    return [
        line.family,
        str(line.cases),
        f"{line.elements:,}",
        f"{line.differing:,}",
        f"{line.worst:.3f}",
        *ulps,
        f"{100 * line.equal:.1f}" if measured else "",
        f"[{style}]{line.status}[/]",
    ]


def _short(ulps: float) -> str:
    return f"{ulps:.2f}" if ulps < 10 else f"{ulps:.0f}" if ulps < 1000 else f"{ulps:.0e}"


def _totals(result: Result, found: list[Line]) -> list[str]:
    differing = sum(line.differing for line in found)
    worst = max(line.worst for line in found)
    cases = sum(line.cases for line in found)
    return [str(cases), f"{result.elements:,}", f"{differing:,}", f"{worst:.3f}", "", "", "", "", ""]


def as_json(result: Result) -> str:
    """The same as data: the machine, the versions, the lines, every outcome with its worst finding, every failure."""
    data = {
        "kernel": result.kernel,
        "implementations": result.subjects,
        "exit_code": result.exit_code,
        "numbers": result.elements,
        "environment": environment(),
        "lines": [vars(line) | {"notes": list(line.notes)} for line in lines(result)],
        "outcomes": [_outcome(outcome) for outcome in result.outcomes],
        "overall": [vars(finding) for finding in result.overall],
        "failures": result.failures,
    }
    return json.dumps(data, indent=1, default=float)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "case": outcome.case.id,
        "implementation": outcome.subject,
        "status": outcome.status,
        "reasons": outcome.reasons,
        "numbers": outcome.elements,
        "bits_differing": outcome.differing,
        "findings": [vars(finding) for finding in outcome.findings],
    }


def environment() -> dict[str, str]:
    """Python, the machine and the versions of what took part (installed or absent)."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in ("maskattn", "numpy", "torch", "jax", "flax"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
