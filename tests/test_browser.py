"""Every page that is written, in a real browser; and the checks themselves, on pages that have what they look for."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from maskattn.diagnose import Gradient, Place, Report
from maskattn.diagnose.parameters import Pair, Parameters
from maskattn.parity.attention.adapters import NumpyExact
from maskattn.parity.attention.cases import select
from maskattn.parity.attention.run import run_cases
from maskattn.parity.models.run import COLUMNS, Cell, Row
from maskattn.parity.report import cases_page, checkpoint, comparison, models
from tests import browser, results

ROOT = Path(__file__).parents[1]
#: Where `make docs` leaves the site.
SITE = ROOT / "build/docs"
#: Of its pages, one of each kind: the first, tables, a reference. These are judged wholly, which is slow for long ones.
OF_EACH_KIND = {"index.html", "modes.html", "reference/show.html"}
#: What axe finds in every page of Sphinx and of the theme, which no style can mend.
OF_THE_THEME = {
    "aria-required-attr": "captions of the navigation have a role, and no level",
    "definition-list": "the arguments of a long signature stand in a list without terms",
    "empty-table-header": "the corner of a table that has headings above and at its left",
    "landmark-unique": "what stands at the left and at the right have no names",
    "scrollable-region-focusable": "code and tables have no tabindex; browsers reach what scrolls without one",
}
#: Of the site, which Sphinx lays out as tables that have no headings.
INDEXES = {"genindex.html", "py-modindex.html"}
#: Of the theme, which gives it no heading: looked at like the others, and not judged by axe.
SEARCH = "search.html"


def _compared(differ: bool) -> Report:
    """A comparison with everything that one can have."""
    module = "model.encoder.layers.11.attention.self.query_key_value"
    code = "gelu at /home/someone/projects/ports/original/modeling_original.py:1234 EncoderLayer.forward"
    pairs = [Pair(f"{module}.{n}", f"params/{module.replace('.', '/')}/{n}", "transposed") for n in range(40)]
    pairs += [Pair("embedding.weight", "wte", "differs", "by 3.1e-02 of the largest number", "bfloat16", "torch")]
    gradients = [Gradient(f"{module}.{n}", f"params/{n}", 1e-12) for n in range(40)]
    if not differ:
        return Report((), 3e-16, 1e-9, (("logits", "[0]", 3e-16),), Parameters(tuple(pairs[:40])), tuple(gradients))
    places = (
        Place((code,), ("jax.nn.gelu at port.py:5 block",), "the activation is gelu (tanh)", 0.0, (code,) * 9),
        Place((code,) * 5, (), "", 1.0),
    )
    outputs = (("last_hidden_state", "[0]", 0.031), ("", "", 1e-12))
    notes = ("one row only: what goes wrong between the rows of a batch does not show",)
    parameters = Parameters(tuple(pairs), torch_only=(f"{module}.bias",))
    narrowed = (f"{code} (to bfloat16)",)
    gradients.append(Gradient(module, module, 1.0))
    return Report(places, 0.031, 1e-9, outputs, parameters, tuple(gradients), notes, narrowed)


def _written() -> dict[str, str]:
    """Of each kind a page of what held, and one that is as hard to show as can be."""
    held = run_cases(select("*/wide/float32/0"), [NumpyExact()], kernel="exact")
    cells = {column: Cell(0.031, "hidden states, layer 1") for column in COLUMNS}
    broken = cells | {"logits": None, "hidden": Cell(1.7e308, f"jax, {results.NAME}")}
    failed = [Row("llama", cells), Row(results.NAME, broken), Row("gpt2", error="ValueError: no such luck " * 20)]
    many = results.of_cases()
    many.outcomes *= 30  # more failures than are shown at once
    hard = results.of_checkpoint()
    return {
        "parity": cases_page.as_html(held),
        "parity-failed": cases_page.as_html(many),
        "checkpoint": checkpoint.as_html(replace(hard, layers=hard.layers[:1])),
        "checkpoint-failed": checkpoint.as_html(hard),
        "models": models.as_html([Row(f"model-{n}", cells) for n in range(40)], list(COLUMNS)),
        "models-failed": models.as_html(failed, list(COLUMNS)),
        "compare": comparison.as_html(_compared(False)),
        "compare-failed": comparison.as_html(_compared(True)),
    }


def test_every_page_of_results_can_be_read_on_a_phone_and_in_the_dark(tmp_path):
    browser.found()
    for name, made in _written().items():
        (tmp_path / f"{name}.html").write_text(made, encoding="utf-8")
    assert browser.wrong(sorted(tmp_path.glob("*.html"))) == []


def _of_the_site() -> list[Path]:
    """Its pages; without a site the test is skipped, but where a browser is demanded."""
    browser.found()
    pages = sorted(page for page in SITE.rglob("*.html") if page.name not in INDEXES)
    if not pages and "MASKATTN_BROWSER" not in os.environ:
        pytest.skip("no site: make docs")
    return pages


@pytest.mark.slow  # axe takes seconds for each page
def test_every_page_of_the_site_is_judged_wholly():
    pages = [page for page in _of_the_site() if page.name != SEARCH]
    assert pages
    assert browser.wrong(pages, (), OF_THE_THEME) == []


def test_every_page_of_the_site_can_be_read_on_a_phone_and_in_the_dark():
    pages = _of_the_site()
    judged = [page for page in pages if str(page.relative_to(SITE)) in OF_EACH_KIND]
    assert len(judged) == len(OF_EACH_KIND)
    assert browser.wrong(judged, [page for page in pages if page not in judged], OF_THE_THEME) == []


#: Something wrong, and what is said of it.
WRONG = {
    "wide": ("<div style='width:500px'>x</div>", "the page scrolls sideways"),
    "wide-cell": (f"<table><tr><th>a</th><td style='white-space:nowrap'>{'word ' * 60}</td></tr></table>", "sideways"),
    "cut": ("<div style='overflow:hidden'><table style='width:600px'><tr><th>a</th></tr></table></div>", "cut off"),
    "narrow": ("<table><tr><th>a</th><td style='max-width:90px'>" + "word " * 20 + "</td></tr></table>", "a sentence"),
    "headless": ("<table><tr><td>a</td></tr></table>", "no cell is a heading"),
    "heads-without-words": ("<table><tr><th></th></tr><tr><td>a</td></tr></table>", "no cell is a heading"),
    "small": ("<p style='font-size:9px'>x</p>", "text of 9 pixels"),
    "faint": ("<p style='color:#999;background:#fff'>some words</p>", "color-contrast"),
    "faint-in-the-dark": (
        "<style>@media(prefers-color-scheme:dark){p{color:#444;background:#111}}</style><p>some words</p>",
        "desk, dark: color-contrast",
    ),
    "picture": ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", "image-alt"),
    "no-picture": ("<img alt='x' src='none.png'>", "not drawn"),
    "script": ("<script>nothing.there()</script>", "script: nothing is not defined"),
    "console": ("<script>console.error('oh')</script>", "console: oh"),
    "elsewhere": ("<link rel=stylesheet href='https://example.org/a.css'>", "asks example.org for /a.css"),
    "fold": (
        "<details onkeydown='event.preventDefault()'><summary>open me</summary>x</details>",
        "by keyboard: open me",
    ),
    "fold-inside": (
        "<details><summary>open</summary><p style='color:#999;background:#fff'>some words</p></details>",
        "contrast",
    ),
}


def test_what_is_wrong_with_a_page_is_found(tmp_path):
    browser.found()
    head = "<!doctype html><html lang=en><meta charset=utf-8><title>t</title><main><h1>t</h1>"
    pages = {name: f"{head}{part}</main>" for name, (part, _) in WRONG.items()} | {
        "right": f"{head}<p>x</p></main>",
        "no-language": "<!doctype html><title>t</title><main><h1>t</h1></main>",
        "no-title": "<!doctype html><html lang=en><main><h1>t</h1></main>",
    }
    for name, made in pages.items():
        (tmp_path / f"{name}.html").write_text(made, encoding="utf-8")
    said = "\n".join(browser.wrong(sorted(tmp_path.glob("*.html"))))
    expected = {name: what for name, (_, what) in WRONG.items()} | {
        "no-language": "html-has-lang",
        "no-title": "document-title",
    }
    for name, what in expected.items():
        assert [line for line in said.splitlines() if line.startswith(f"{name}.html: ") and what in line], (name, said)
    assert "\nright.html" not in f"\n{said}"


def test_a_browser_that_is_named_is_demanded(monkeypatch):
    monkeypatch.setenv("MASKATTN_BROWSER", "no-such-program")
    with pytest.raises(AssertionError, match="no program no-such-program"):
        browser.found()
    monkeypatch.setenv("MASKATTN_BROWSER", "sh")
    assert Path(browser.found()).is_absolute()
    monkeypatch.delenv("MASKATTN_BROWSER")
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    pytest.importorskip("playwright")
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        browser.found()
