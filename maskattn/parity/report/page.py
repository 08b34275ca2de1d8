"""The frame of a page of results: it needs nothing else, and is read on a phone and in the dark as well."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import Mark

#: How a run ended: all held, something did not, or what ran held and not all ran.
Ending = Literal["held", "FAILED", "partly"]

_SHOWN = 10  # failures that are seen without opening the list

_LONG = 20  # letters of a cell that make its column wide

# A colour is never alone: verdicts are words with a sign before them, figures beyond their limit have the sign too.
_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#20242b;--soft:#4c5563;--line:#d5dae2;--head:#eef1f5;
--good:#116840;--bad:#b42318;--warn:#8a5200;--fill:#1f4e8c;--empty:#e6eaf0}
@media (prefers-color-scheme:dark){:root{--page:#14171c;--card:#1d2128;--ink:#e6e9ee;--soft:#b3bbc7;--line:#3b424d;
--head:#272c34;--good:#63d29a;--bad:#ff9a91;--warn:#eab95f;--fill:#86b5f0;--empty:#2a3038}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0;overflow-wrap:anywhere}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;line-height:1.25;margin:0}h2{font-size:20px;margin:40px 0 12px}h3{font-size:17px;margin:0}
p{margin:8px 0;color:var(--soft);max-width:80ch}
code{font:0.9em/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.held{color:var(--good)}.FAILED{color:var(--bad)}.partly,.not{color:var(--warn)}
.held,.FAILED,.partly,.not{font-weight:600}
.held::before{content:"\\2713\\00a0"/""}.FAILED::before{content:"\\2717\\00a0"/""}
.verdict{font-size:18px;padding:12px 16px;margin:16px 0;max-width:none;background:var(--card);border:1px solid;
border-left-width:6px;border-radius:8px}
dl{margin:0}dd{margin:0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.facts dt{color:var(--soft);font-size:14px}.facts dd{font-size:20px;font-weight:600;font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px}
.card.bad{border:2px solid var(--bad)}.card header{display:flex;justify-content:space-between;gap:8px}
.card>div{display:grid;grid-template-columns:112px 1fr;gap:16px;align-items:start;margin-top:10px}
.card svg{display:block;background:var(--empty);fill:var(--fill)}
.card .none{width:112px;height:112px;background:var(--empty);display:grid;place-items:center}
.card .none{color:var(--soft);font-size:14px}
.figures{display:grid;grid-template-columns:auto auto;gap:1px 12px;font-size:14px}.figures dt{color:var(--soft)}
.figures dd{text-align:right;font-variant-numeric:tabular-nums}
.places{list-style:none;padding:0;margin:0;display:grid;gap:14px}
.sides{display:grid;grid-template-columns:auto 1fr;gap:4px 16px;margin-top:10px}
.sides dt{color:var(--soft)}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:8px 12px;border-top:1px solid var(--line);vertical-align:top;overflow-wrap:normal}
thead th{background:var(--head);border-top:0;vertical-align:bottom}tbody th{font-weight:600}
.long{min-width:15em}tbody th,td.long{overflow-wrap:anywhere}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
summary{cursor:pointer;padding:8px 0;min-height:40px;font-weight:600}summary h2{display:inline;margin:0}
details{margin-top:24px}
:focus-visible{outline:3px solid var(--fill);outline-offset:2px}
li.wrong{margin:4px 0;font-size:15px}
"""


def page(
    title: str,
    verdict: str,
    ending: Ending,
    body: str,
    *,
    about: str = "",
    facts: Mapping[str, str] | None = None,
    failures: Sequence[str] = (),
    failed: str = "Failures",
) -> str:
    """A page. Nothing in it is fetched: pictures are inline SVG, the style is in the page, and there is no script.

    Args:
        verdict, ending: how it ended, in a line and in a word.
        body: what it shows, as HTML; all else is text.
        about: what was run. facts: the figures to be seen first, by name.
        failures, failed: what did not hold, a line each, and what they are called.
    """
    first = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in (facts or {}).items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>{text(title)}</h1>"
        + (f"<p>{text(about)}</p>" if about else "")
        + f'<p class="verdict {ending}">{text(verdict)}</p>'
        + (f'<dl class="facts">{first}</dl>' if first else "")
        + (f"<h2>{text(failed)}</h2>{_listed(failures)}" if failures else "")
        + f"{body}<h2>Where this ran</h2>{table('Where this ran', ('what', 'which'), environment().items(), words=2)}"
        "</main></body></html>\n"
    )


def table(label: str, headings: Sequence[str], rows: Iterable[Sequence[str | Mark]], *, words: int = 1) -> str:
    """A table in a box of its own, which scrolls where the page is narrower; a row's first cell is its heading.

    Args:
        label: what it is, for those who do not see it.
        headings: as on the terminal, where the column of verdicts has none.
        rows: a cell for each heading.
        words: how many columns at the left hold words; all others hold figures or verdicts.
    """
    names = [heading.replace("/\n", "/").replace("\n", " ").strip() or "verdict" for heading in headings]
    lines = list(rows)
    longest = [max((len(_plain(line[n])) for line in lines), default=0) for n in range(len(names))]
    kinds = ["n" if n >= words else "long" if length > _LONG else "words" for n, length in enumerate(longest)]
    head = "".join(f'<th scope="col" class="{kind}">{text(name)}</th>' for kind, name in zip(kinds, names, strict=True))
    body = ""
    for first, *cells in lines:
        failed = ' class="FAILED"' if "FAILED" in cells else ""  # seen where the verdict is scrolled out of sight
        filled = "".join(_cell(kind, cell) for kind, cell in zip(kinds[1:], cells, strict=True))
        body += f'<tr><th scope="row"{failed}>{text(_plain(first))}</th>{filled}</tr>'
    return (
        f'<div class="wide" role="region" aria-label="{text(label)}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def folded(title: str, count: int, inside: str) -> str:
    """A section that is closed until it is asked for."""
    return f"<details><summary><h2>{text(title)} ({count:,})</h2></summary>{inside}</details>"


def text(value: object) -> str:
    """Text as HTML."""
    return html.escape(str(value))


def write_text(made: str, path: str | os.PathLike[str]) -> None:
    """Write a page to a temporary file beside `path`, sync it and rename it: whatever fails, `path` is as it was."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(cell: str | Mark) -> str:
    return cell if isinstance(cell, str) else cell.figure


def _cell(kind: str, cell: str | Mark) -> str:
    if isinstance(cell, Mark):
        verdict = "" if cell.held else ' <span class="FAILED">'
        return f'<td class="{kind}">{verdict}{text(cell.figure)}{"</span>" if verdict else ""}</td>'
    inside = f'<span class="{cell}">{cell}</span>' if cell in ("held", "FAILED", "partly") else text(cell)
    return f'<td class="{kind}">{inside}</td>'


def _listed(failures: Sequence[str]) -> str:
    lines = [f'<li class="wrong">{text(line)}</li>' for line in failures]
    shown = f"<ul>{''.join(lines[:_SHOWN])}</ul>"
    more = len(lines) - _SHOWN
    if more <= 0:
        return shown
    return f"{shown}<details><summary>{more:,} more</summary><ul>{''.join(lines[_SHOWN:])}</ul></details>"
