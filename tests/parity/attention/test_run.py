"""The runner, the report and the command, over adapters of NumPy alone."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn.cli.parity import command
from maskattn.parity.attention import textbook
from maskattn.parity.attention.adapters import CONVENTIONS, NumpyExact
from maskattn.parity.attention.cases import get, select
from maskattn.parity.attention.run import run_cases
from maskattn.parity.report.cases import lines


class Plain:
    """The plain computation as an implementation: a stand-in for other people's attention."""

    name = "plain"
    conventions = CONVENTIONS

    def unsupported(self, case):
        return ["modules"] if case.config is not None else []

    def run(self, case, inputs, weights=None, cotangent=None):
        if case.must_raise:
            raise ValueError("empty_rows='error': an empty row")
        return textbook.run(case, inputs, cotangent)


class Mean(Plain):
    name = "mean"
    conventions = {**CONVENTIONS, "empty_rows": "mean", "nan_masked": "leaks"}


class Broken(Plain):
    name = "broken"

    def run(self, case, inputs, weights=None, cotangent=None):
        raise RuntimeError("no such luck")


class Silent(Plain):
    """Returns what it should refuse, and forgets a gradient."""

    name = "silent"

    def run(self, case, inputs, weights=None, cotangent=None):
        results = textbook.run(case, inputs, cotangent)
        results.pop("d_key")
        return results


def _invoke(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_the_plain_computation_keeps_tier_2():
    result = run_cases(select("Dense/*") + select("options/*"), [Plain()], kernel="reference")
    assert not result.failures, "\n".join(result.failures)
    assert result.exit_code == 0 and result.elements > 50_000


def test_an_exception_is_a_failure_with_its_case():
    result = run_cases([get("Full/tall/float32/0")], [NumpyExact(), Broken()], kernel="exact")
    assert result.exit_code == 1
    assert any("Full/tall/float32/0" in line and "no such luck" in line for line in result.failures)


def test_a_missing_gradient_and_an_unraised_error_are_failures():
    result = run_cases([get("options/empty-error/float32"), get("Full/tall/float32/0")], [Silent()])
    assert any("empty_rows='error'" in line for line in result.failures)
    assert any("d_key" in line and "missing" in line for line in result.failures)


def test_declared_differences_are_reported_and_not_judged():
    cases = [get("options/plain/float32"), get("planted/nan/causal/float32"), get("Full/wide/float32/0")]
    result = run_cases(cases, [Mean()])
    statuses = [outcome.status for outcome in result.outcomes]
    assert statuses == ["differs", "differs", "held"]
    assert result.exit_code == 3
    assert any("empty_rows" in reason for outcome in result.not_run for reason in outcome.reasons)


def test_nothing_run_is_a_failure():
    assert run_cases([], [Plain()]).exit_code == 1
    assert run_cases([get("MultiHeadAttention/self/float32")], [Plain()]).exit_code == 1


def test_samples_are_drawn_until_enough_and_not_without_end():
    result = run_cases([], [NumpyExact()], kernel="exact", samples=15_000)
    assert 15_000 <= result.elements < 30_000 and not result.failures
    assert len(run_cases([], [Broken()], samples=10).outcomes) == 1


def test_command_judges_another_implementation(tmp_path):
    target = tmp_path / "found.json"
    found = _invoke(
        "--cases", "Causal/wide/*", "--impl", f"{__name__}:Plain", "--kernel", "reference", "--json", str(target)
    )
    assert found.exit_code == 0, found.output
    assert "Causal" in found.output and "every case ran and held" in found.output
    data = json.loads(target.read_text())
    assert data["exit_code"] == 0 and data["lines"][0]["family"] == "Causal"
    assert data["numbers"] == sum(line["elements"] for line in data["lines"])


@pytest.mark.parametrize(("impl", "code"), [("Broken", 1), ("Mean", 3), ("Plain", 0)])
def test_exit_codes(impl, code):
    found = _invoke("--cases", "options/s*/float32", "--impl", f"{__name__}:{impl}", "--kernel", "reference")
    assert found.exit_code == code, found.output


def test_command_refuses_what_matches_nothing_or_cannot_be_loaded():
    found = _invoke("--cases", "no-such-case")
    assert found.exit_code == 2 and "`maskattn parity list` shows their ids" in " ".join(found.output.split())
    found = _invoke("--impl", "no.such.module:X")
    assert found.exit_code == 1 and "cannot load" in found.output


def test_an_adapter_is_found_in_the_folder_where_the_command_is_run(tmp_path, monkeypatch):
    text = "from maskattn.parity.attention.adapters import NumpyExact\n\nADAPTER = NumpyExact\n"
    (tmp_path / "adapter_of_this_folder.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    found = _invoke("--impl", "adapter_of_this_folder:ADAPTER", "--cases", "Causal/square/float32/0")
    assert found.exit_code == 0 and sys.path == before, found.output


def test_command_lists_cases():
    found = _invoke("list", "--cases", "Segments")
    assert found.exit_code == 0
    assert "Segments/square/float32/0" in found.output.split()


def test_lines_measure_what_was_judged():
    found = lines(run_cases(select("Empty/*") + select("Full/square/float32/*"), [NumpyExact()], kernel="exact"))
    assert [line.family for line in found] == ["Empty", "Full"]
    assert found[1].equal == 1.0 and 0.4 < found[1].highest <= 0.5 and found[1].status == "held"
    assert np.isfinite([line.worst for line in found]).all()


def test_a_page_that_needs_nothing_else(tmp_path):
    """Every tag is closed, nothing is fetched, the figures are there, and a page that cannot be written changes
    nothing."""
    from html.parser import HTMLParser

    target = tmp_path / "page.html"
    numpy = ("--impl", "maskattn.parity.attention.adapters:NumpyExact", "--html", str(target))
    found = _invoke("--cases", "*/wide/float32/0", *numpy)
    assert found.exit_code == 0, found.output
    text, open_tags, seen = target.read_text(), [], []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, dict(attrs)))
            if tag not in ("meta", "path"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag != "path":
                assert open_tags.pop() == tag

    Parser().feed(text)
    assert not open_tags
    assert not [tag for tag, attrs in seen if tag in ("script", "link", "img") or {"src", "href"} & set(attrs)]
    assert "url(" not in text and "@import" not in text
    pictures = [attrs["aria-label"] for tag, attrs in seen if tag == "svg"]
    assert "Causal, 5 queries, 17 keys" in pictures and len(pictures) == text.count('class="card"') > 15
    assert "tier1.ulp" in text and "every case ran and held" in text
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    refused = _invoke("--cases", "Full/wide/*", *numpy[:3], str(tmp_path / "none" / "page.html"))
    assert refused.exit_code == 2 and "cannot write" in refused.output
    assert _invoke("faults", *numpy).exit_code == 2
