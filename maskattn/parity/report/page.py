"""A run's results as one HTML page that needs nothing else: each mask drawn, its figures beside the limits."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskattn import standards
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.result import Result
from maskattn.parity.report.cases import VERDICTS, Line, lines
from maskattn.parity.report.environment import environment

_CELLS = 24  # queries and keys of a drawing

_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:#20242b;background:#f6f7f9;margin:0}
main{max-width:1120px;margin:0 auto;padding:32px 20px}h1{font-size:28px;margin:0}h2{font-size:19px;margin:36px 0 12px}
p{margin:6px 0;color:#4c5563}.verdict{font-weight:600;color:#137045}.verdict.bad{color:#b42318}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:14px}
.card{background:#fff;border:1px solid #dfe3e9;border-radius:10px;padding:14px}
.card header{display:flex;justify-content:space-between;gap:8px;font-weight:600}
.card svg,.card .none{display:block;width:128px;height:128px;margin:10px auto;background:#eef1f5}
.card .none{display:grid;place-items:center;color:#6b7483;font-size:13px}.card.bad{border-color:#b42318}
.held{color:#137045}.FAILED{color:#b42318}.partly,.not{color:#9a5b00}
dl{display:grid;grid-template-columns:auto auto;gap:1px 12px;margin:0;font-size:13px}dt{color:#6b7483}
dd{margin:0;text-align:right;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;background:#fff;font-size:13px}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid #e6e9ee;vertical-align:top}
th{background:#eef1f5}td.n{text-align:right;font-variant-numeric:tabular-nums}
li{color:#b42318;font-size:13px;overflow-wrap:anywhere}
"""


def as_html(result: Result) -> str:
    """The page. Nothing in it is fetched: pictures are inline SVG, the style is in the page, and there is no script."""
    first: dict[str, Case] = {}
    for outcome in result.outcomes:
        first.setdefault(outcome.case.family, outcome.case)
    all_lines = lines(result)
    ran = len({outcome.case.id for outcome in result.outcomes if outcome.findings})
    verdict = VERDICTS[result.exit_code]
    differing = sum(line.differing for line in all_lines)
    bits = f"{differing:,} bits differ" if result.kernel == "exact" else f"{differing:,} differ between implementations"
    if len(result.subjects) < 2:
        bits = "one implementation, so that no bits were compared"
    cards = "".join(_card(line, first[line.family], result.kernel) for line in all_lines)
    limits = "".join(
        f"<tr><td>{_text(s.name)}</td><td class=n>{s.value:.6g}</td>"
        f"<td>{_text(s.holds)}</td><td>{_text(s.why)}</td></tr>"
        for s in standards.STANDARDS
    )
    notes = "".join(f"<p>{_text(note)}</p>" for note in sorted({note for line in all_lines for note in line.notes}))
    body = (
        (f"<h2>Not run</h2>{notes}" if notes else "")
        + "<h2>By mask</h2><p>Queries run down, keys across; dark = may attend. error / limit: the largest error as a "
        "share of its limit. equal: share of the results that are the oracle's, rounded.</p>"
        f'<div class="cards">{cards}</div>'
        f'<h2>Limits</h2><div class="wide"><table><tr><th>name</th><th>limit</th><th>where it holds</th><th>why</th>'
        f"</tr>{limits}</table></div>"
    )
    said = f"{verdict}: {ran:,} cases, {result.elements:,} numbers of output and gradients compared, {bits}"
    about = f"Kernel {result.kernel}: {', '.join(result.subjects)}"
    return page("maskattn parity", said, result.exit_code == 1, result.failures, body, about)


def page(title: str, verdict: str, bad: bool, failures: Sequence[str], body: str, about: str = "") -> str:
    """A page of results that needs nothing else: what did not hold, what the body shows, and where it ran."""
    versions = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in environment().items())
    listed = "".join(f"<li>{_text(line)}</li>" for line in failures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>{title}</h1>"
        + (f"<p>{_text(about)}</p>" if about else "")
        + f'<p class="verdict{" bad" if bad else ""}">{_text(verdict)}</p>'
        + (f"<h2>Failures</h2><ul>{listed}</ul>" if listed else "")
        + f"{body}<h2>Where this ran</h2><table>{versions}</table></main></body></html>\n"
    )


def write(result: Result, path: str | os.PathLike[str]) -> None:
    """Write the page; see `write_text`."""
    write_text(as_html(result), path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a page to a temporary file beside `path`, sync it and rename it: whatever fails, `path` is as it was."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def drawing(case: Case) -> str:
    """One matrix of the case's mask as inline SVG, its upper left corner where it is larger than the picture."""
    if case.mask is None:
        return '<div class="none">no mask</div>'
    densities = case.allowed.mean(axis=(2, 3))
    batch, head = divmod(int(abs(densities - 0.4).argmin()), densities.shape[1])
    keep = case.allowed[batch, head, :_CELLS, :_CELLS]
    rows, columns = keep.shape
    path = "".join(f"M{k} {q}h1v1h-1z" for q in range(rows) for k in range(columns) if keep[q, k])
    label = f"{case.family}, {case.shape.q_len} queries, {case.shape.kv_len} keys"
    return (
        f'<svg viewBox="0 0 {columns} {rows}" role="img" aria-label="{_text(label)}" '
        f'shape-rendering="crispEdges"><path fill="#1f4e8c" d="{path}"/></svg>'
    )


def _card(line: Line, case: Case, kernel: str) -> str:
    figures: dict[str, Any] = {
        "cases": f"{line.cases:,}",
        "numbers": f"{line.elements:,}",
        "differing": f"{line.differing:,}" + (" (limit 0)" if kernel == "exact" else ""),
        "error / limit": f"{line.worst:.3f}",
        "ulp p50": f"{line.p50:.2f}",
        "ulp p99": f"{line.p99:.2f}",
        "ulp max": f"{line.highest:.3g}" + (f" (limit {standards.value('tier1.ulp')})" if kernel == "exact" else ""),
        "equal": f"{100 * line.equal:.2f} %",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in figures.items())
    bad = " bad" if line.status == "FAILED" else ""
    return (
        f'<section class="card{bad}"><header><span>{_text(line.family)}</span>'
        f'<span class="{_text(line.status)}">{_text(line.status)}</span></header>'
        f"{drawing(case)}<dl>{listed}</dl></section>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
