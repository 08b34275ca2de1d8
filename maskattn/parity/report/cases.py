"""A run of cases as a table, a line per mask, and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from maskattn import standards
from maskattn.parity.attention.result import CaseOutcome, Result
from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import print_table, say, share_text


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
    families: dict[str, list[CaseOutcome]] = {}
    for outcome in result.outcomes:
        families.setdefault(outcome.case.family, []).append(outcome)
    return [_line(family, outcomes) for family, outcomes in families.items()]


def _line(family: str, outcomes: list[CaseOutcome]) -> Line:
    ulps = np.concatenate([outcome.ulps for outcome in outcomes])
    ulps = ulps[np.isfinite(ulps)]
    judged = sum(outcome.ulps.size for outcome in outcomes)
    errors = [(f.worst, f.limit) for o in outcomes for f in o.findings if f.check in _ERRORS]
    shares = standards.share(*np.array(errors, np.float64).reshape(-1, 2).T)
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
        float(shares.max(initial=0)),
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


def render(result: Result, console: Console, *, wide: bool = False, verbose: bool = False) -> None:
    """The table, the notes on what did not run, and every failure."""
    all_lines = lines(result)
    say(console, f"kernel {result.kernel}: {', '.join(result.subjects)}")
    headings = ["\nmask", "\ncases", "\nnumbers", "bits\ndiffer", "error/\nlimit"]
    headings += ["ulp\np50", "\np99", "\nmax", "equal\n%", ""] if wide else [""]
    total = [_total(result, all_lines)] if len(all_lines) > 1 else []
    print_table(console, headings, [_row(line, wide) for line in all_lines + total], wide=wide, total=bool(total))
    more = "equal: share of the results that are the oracle's, rounded. ulps of results below 2^-26 of the largest "
    more += "magnitude are those of that floor."
    less = "--wide shows errors in ulps, and how many results are the oracle's, rounded."
    say(console, f"error/limit: the largest error as a share of its limit. {more if wide else less}", "dim")
    for note in sorted({note for line in all_lines for note in line.notes}):
        say(console, f"not run: {note}")
    failures = result.failures
    for failure in failures if verbose else failures[:20]:
        say(console, failure, "red")
    if len(failures) > 20 and not verbose:
        say(console, f"and {len(failures) - 20} more (--verbose shows all)", "red")
    ran = len({o.case.id for o in result.outcomes if o.findings})
    asked = len({o.case.id for o in result.outcomes})
    of = str(ran) if ran == asked else f"{ran} of {asked}"
    say(console, f"{of} cases, {result.elements:,} numbers compared: {VERDICTS[result.exit_code]}", "bold")


def _row(line: Line, wide: bool) -> list[str]:
    cells = [line.family, str(line.cases), f"{line.elements:,}", f"{line.differing:,}", share_text(line.worst)]
    if wide:
        ulps = [_short(x) for x in (line.p50, line.p99, line.highest)]
        measured = line.elements and line.highest + line.equal > 0
        cells += [*ulps, f"{100 * line.equal:.1f}"] if measured else [""] * 4
    return [*cells, line.status]


def _total(result: Result, all_lines: list[Line]) -> Line:
    cases, differing = sum(line.cases for line in all_lines), sum(line.differing for line in all_lines)
    return Line("all", cases, result.elements, differing, max(line.worst for line in all_lines), 0, 0, 0, 0, "", ())


def _short(ulps: float) -> str:
    return f"{ulps:.2f}" if ulps < 10 else f"{ulps:.0f}" if ulps < 1000 else f"{ulps:.0e}"


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


def _outcome(outcome: CaseOutcome) -> dict[str, Any]:
    return {
        "case": outcome.case.id,
        "implementation": outcome.subject,
        "status": outcome.status,
        "reasons": outcome.reasons,
        "numbers": outcome.elements,
        "bits_differing": outcome.differing,
        "findings": [vars(finding) for finding in outcome.findings],
    }
