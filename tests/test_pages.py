"""The pages of docs/ and the README: first examples run as printed, commands exist, links lead somewhere.

Python with prompts runs as a doctest, page by page (`--doctest-glob`); files without (```py) and shell are run here.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from maskattn.cli.main import main
from maskattn.parity.attention.cases import registry
from maskattn.parity.attention.run import run_cases
from tests.frameworks import in_both

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
#: ```language, what is between, ```; or lines indented by four behind an empty one, which are of the shell.
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|(?<=\n\n)((?:    [^\n]*\n)+)", re.DOTALL | re.MULTILINE)
#: Pages that have no example: tables, or prose.
PROSE = {"against-libraries", "benchmarks", "glossary", "models-table", "questions", "sharding", "versioning"}
#: Pages of the site that show a file of the root.
PROSE |= {"changelog", "contributing", "index", "security"}
#: The files that CONTRIBUTING.md shows are tried in a copy of the package: tests/test_contributing.py.
WITH_EXAMPLES = [page for page in ALL if page.stem not in PROSE | {"CONTRIBUTING", "index"}]
#: Commands that take minutes, and where they are tested.
LONG = {"parity training": "tests/parity/training", "parity": "parity_tests"}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each block of a page; without a language it is no code."""
    return [("sh", indented) if indented else (language, code) for language, code, indented in BLOCK.findall(text)]


def first(page: Path) -> tuple[str, str]:
    found = [block for block in blocks(page.read_text(encoding="utf-8")) if block[0] != ""]
    return found[0] if found else ("", "")


def commands(text: str) -> list[list[str]]:
    """The lines of the shell of a page, and commands within its text, as words."""
    lines = [line for language, code in blocks(text) if language == "sh" for line in code.splitlines()]
    lines += re.findall(r"`(maskattn (?:compare|convert|inspect|parity|show)\b[^`]*)`", text)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_a_page_without_an_example_is_known():
    assert {page.stem for page in DOCS if first(page)[0] == ""} == PROSE


@pytest.mark.parametrize(
    "page", [page for page in ALL if page.stem not in PROSE | {"CONTRIBUTING"}], ids=lambda page: page.stem
)
def test_the_first_example_runs_as_printed(page, tmp_path, monkeypatch):
    language, code = first(page)
    monkeypatch.chdir(tmp_path)
    if language in ("python", "py"):
        if not code.startswith(">>>"):  # else a doctest, with nothing before it
            exec(compile(code, page.name, "exec"), {"__name__": page.stem})
    else:
        assert language == "sh"
        for words in commands(f"```sh\n{code}```"):
            run(words, page)


def run(words: list[str], page: Path) -> None:
    """A line of the shell; of what installs, builds or takes long only that it is there."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert set(re.findall(r"\w+", words[2].partition("[")[2])) <= extras.keys(), words
    elif (place := LONG.get(" ".join(words[1:]) if len(words) < 4 else "")) is not None:
        assert words[0] == "maskattn" and (ROOT / place).is_dir()
    else:
        assert words[0] == "maskattn", words
        done = CliRunner().invoke(main, words[1:])
        assert done.exit_code == 0, f"{page.name}: {' '.join(words)}: {done.output}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_commands_and_their_options_exist(page):
    for name, *arguments in commands(page.read_text(encoding="utf-8")):
        if name != "maskattn":
            continue
        command: click.Command = main
        while isinstance(command, click.Group):
            word = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
            found = command.get_command(click.Context(command), word)
            assert found is not None, word
            command = found
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given = {word.partition("=")[0] for word in arguments if re.match(r"-\w$|--\w", word)}
        assert given <= known, (command.name, given - known)


def slug(heading: str) -> str:
    """The anchor that GitHub and MyST give a heading."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def links(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^()\s]+)\)", prose) if not re.match(r"https?:|mailto:", link)]


@pytest.mark.parametrize("page", [*ALL, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    for link in links(page.read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_question_has_an_answer_and_every_page_is_within_two_clicks():
    text = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    questions = re.findall(r"^- (.*?)(?=^- |^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(questions) > 50
    for question in questions:
        assert re.match(r"\*\*[^*]*[.?]\*\*|\*\*.*?\*\*", question) and links(question), question
    shown = {link.partition("#")[0] for link in links(text)}
    shown |= {link.removeprefix("docs/") for link in links((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {page.name for page in DOCS} - shown <= {
        "index.md",
        "questions.md",
        "changelog.md",
        "contributing.md",
        "security.md",
    }


@in_both
def test_the_adapter_holds_where_it_runs_and_says_why_elsewhere():
    names: dict[str, Any] = {}
    exec(compile(first(ROOT / "docs/proving.md")[1], "proving.md", "exec"), names)
    families = {"Full", "Causal", "Segments", "options", "planted", "MultiHeadAttention"}
    cases = [case for case in registry() if case.family in families and case.dtype in ("float32", "float16")]
    result = run_cases(cases, [names["ADAPTER"]], kernel="reference")
    assert not result.failures, "\n".join(result.failures)
    held = {outcome.case.family for outcome in result.outcomes if outcome.status == "held"}
    assert {"Full", "Causal", "options"} <= held and result.elements > 1000
    reasons = {reason for outcome in result.not_run for reason in outcome.reasons}
    assert {"plain attention only", "float32 only", "nan_masked: declared 'leaks'"} <= reasons
    assert "empty_rows: asked 'zero', declared 'nan'" in reasons and result.exit_code == 3
