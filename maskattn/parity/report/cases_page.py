"""A run of cases as a page: each mask drawn, its figures beside the limits."""

from __future__ import annotations

import os
from typing import Any

from maskattn import standards
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.result import Result
from maskattn.parity.report.cases import VERDICTS, Line, lines
from maskattn.parity.report.page import Ending, folded, page, table, text, write_text
from maskattn.parity.report.table import share_text

_CELLS = 24  # queries and keys of a drawing
_SIDE = 112  # its longer side in pixels, as in the style of the page
_ENDINGS: dict[int, Ending] = {0: "held", 1: "FAILED", 3: "partly"}
_FIRST = ("FAILED", "not run", "partly", "held")  # what needs a look comes first


def as_html(result: Result) -> str:
    """The page; see `page`."""
    first: dict[str, Case] = {}
    for outcome in result.outcomes:
        first.setdefault(outcome.case.family, outcome.case)
    found = sorted(lines(result), key=lambda line: _FIRST.index(line.status))
    cards = "".join(_card(line, first[line.family]) for line in found)
    limits = [[s.name, s.holds, s.why, f"{s.value:.6g}"] for s in standards.STANDARDS]
    notes = "".join(f"<p>{text(note)}</p>" for note in sorted({note for line in found for note in line.notes}))
    exact = f" Limits: 0 differing, {standards.value('tier1.ulp')} ulp." if result.kernel == "exact" else ""
    headings = ("name", "where it holds", "why", "limit")
    body = (
        (f"<h2>Not run</h2>{notes}" if notes else "")
        + "<h2>By mask</h2><p>Queries run down, keys across; a filled cell may attend. error / limit: the largest "
        f"error as a share of its limit. equal: share of the results that are the oracle's, rounded.{exact}</p>"
        f'<div class="cards">{cards}</div>' + folded("Limits", len(limits), table("Limits", headings, limits, words=3))
    )
    differing = sum(line.differing for line in found)
    facts = {
        "cases": f"{len({outcome.case.id for outcome in result.outcomes if outcome.findings}):,}",
        "numbers compared": f"{result.elements:,}",
        "bits that differ": f"{differing:,}" if len(result.subjects) > 1 else "one side only",
        "largest error / limit": share_text(max((line.worst for line in found), default=0.0)),
    }
    return page(
        "maskattn parity",
        _verdict(result, found),
        _ENDINGS[result.exit_code],
        body,
        about=f"Kernel {result.kernel}: {', '.join(result.subjects)}",
        facts=facts,
        failures=result.failures,
    )


def write(result: Result, path: str | os.PathLike[str]) -> None:
    """Write the page; see `write_text`."""
    write_text(as_html(result), path)


def drawing(case: Case) -> str:
    """One matrix of the case's mask as inline SVG, its upper left corner where it is larger than the picture."""
    if case.mask is None:
        return '<div class="none">no mask</div>'
    densities = case.allowed.mean(axis=(2, 3))
    batch, head = divmod(int(abs(densities - 0.4).argmin()), densities.shape[1])
    keep = case.allowed[batch, head, :_CELLS, :_CELLS]
    rows, columns = keep.shape
    path = "".join(f"M{k} {q}h1v1h-1z" for q in range(rows) for k in range(columns) if keep[q, k])
    unit = _SIDE / max(rows, columns)
    label = f"{case.family}, {case.shape.q_len} queries, {case.shape.kv_len} keys"
    return (
        f'<svg viewBox="0 0 {columns} {rows}" width="{columns * unit:g}" height="{rows * unit:g}" role="img" '
        f'aria-label="{text(label)}" shape-rendering="crispEdges"><path d="{path}"/></svg>'
    )


def _verdict(result: Result, found: list[Line]) -> str:
    failed = sum(line.status == "FAILED" for line in found)
    said = f": {len(result.failures):,} failures, in {failed} of {len(found)} masks" if result.failures else ""
    return VERDICTS[result.exit_code] + said


def _card(line: Line, case: Case) -> str:
    figures: dict[str, Any] = {
        "cases": f"{line.cases:,}",
        "numbers": f"{line.elements:,}",
        "differing": f"{line.differing:,}",
        "error / limit": share_text(line.worst),
        "ulp p50": f"{line.p50:.2f}",
        "ulp p99": f"{line.p99:.2f}",
        "ulp max": f"{line.highest:.3g}",
        "equal": f"{100 * line.equal:.2f} %",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in figures.items())
    bad = " bad" if line.status == "FAILED" else ""
    return (
        f'<section class="card{bad}"><header><h3>{text(line.family)}</h3>'
        f'<span class="{text(line.status)}">{text(line.status)}</span></header>'
        f'<div>{drawing(case)}<dl class="figures">{listed}</dl></div></section>'
    )
