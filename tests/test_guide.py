"""The glossary, the guide pages and their drawings name what is there: each path exists, each name is defined in it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import struct
import sys
from pathlib import Path

import pytest

from tests.frameworks import in_both

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("glossary", "life-of-a-call", "life-of-a-conversion")
TWINS = ("maskattn_jax", "maskattn_torch")
#: `name` in `path`, `name` and `name` in `path`, `name` (in `path`)
PLACES = re.compile(r"`([A-Za-z_][\w.]*)`(?:\s+and\s+`([A-Za-z_]\w*)`)?\s+\(?in\s+`([\w*/.-]+\.py)`")
PATHS = re.compile(r"`((?:maskattn|maskattn_\*|maskattn_jax|maskattn_torch)/[^`\s]+)`")


def page(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


@functools.cache
def drawings():
    """docs/drawings.py, which needs matplotlib only to draw."""
    spec = importlib.util.spec_from_file_location("drawings", DOCS / "drawings.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["drawings"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def files(path):
    """The file that a path names, or that of each twin."""
    return [ROOT / path.replace("maskattn_*", twin) for twin in (TWINS if "*" in path else ("",))]


@functools.cache
def defined(file):
    """What a file defines or imports, and what its classes define, as Class.name."""
    return set(_names(ast.parse(file.read_text(encoding="utf-8")).body, ""))


def _names(body, before):
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield before + node.name
        if isinstance(node, ast.ClassDef) and not before:
            yield from _names(node.body, f"{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (before + target.id for target in targets if isinstance(target, ast.Name))
        if isinstance(node, ast.ImportFrom) and not before:
            yield from (alias.asname or alias.name for alias in node.names)


def wrong(text):
    """Paths that do not exist, and names that their files do not define."""
    found = [path for path in PATHS.findall(text) if not all(file.exists() for file in files(path))]
    for *names, path in PLACES.findall(text):
        there = [defined(file) for file in files(path) if file.exists()]
        found += [f"{name} in {path}" for name in names if name and not all(name in each for each in there)]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_is_there(name):
    text = page(name)
    assert wrong(text) == []
    assert len(PLACES.findall(text)) >= 10


def astray(tree):
    """What lies in a package and is not in the tree of architecture.md, and files of the tree that are nowhere."""
    named = set(re.findall(r"[\w.]+(?=/)|\w+\.py\b", tree))
    there = [file for package in ("maskattn", *TWINS) for file in (ROOT / package).iterdir()]
    rooms = {file.name for file in there if file.suffix == ".py" or (file / "__init__.py").exists()}
    files = {
        file.name for folder in ("maskattn*", "release", "docs", "tests") for file in ROOT.glob(f"{folder}/**/*.py")
    }
    return sorted(rooms - named), sorted(name for name in named - files if name.endswith(".py"))


def test_the_tree_of_the_architecture_has_what_there_is():
    (tree,) = re.findall(r"^```\n(maskattn/\n.*?)^```$", page("architecture"), re.MULTILINE | re.DOTALL)
    assert astray(tree) == ([], [])
    assert astray(tree.replace(" _text.py ", " _txet.py ")) == (["_text.py"], ["_txet.py"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`Call` in `maskattn/_call.py`, `Conditions` in\n`maskattn_torch/kernels/blockwise/walk.py`", []),
        ("`data` and `part` in `maskattn/_declared.py`", []),
        ("`maskattn/convert/live.py`", ["maskattn/convert/live.py"]),
        ("`Problem` in `maskattn/_call.py`", ["Problem in maskattn/_call.py"]),
        ("`data` and `parts` in `maskattn/_declared.py`", ["parts in maskattn/_declared.py"]),
        ("`Mask.forbidden` (in\n`maskattn/masks/_core.py`)", ["Mask.forbidden in maskattn/masks/_core.py"]),
        ("`_cleaned` in `maskattn_*/kernels/reference.py`", ["_cleaned in maskattn_*/kernels/reference.py"]),
        # only one twin has it
        ("`Steps` in `maskattn_*/kernels/blockwise/steps.py`", ["maskattn_*/kernels/blockwise/steps.py"]),
    ],
)
def test_what_is_not_there_is_found(text, found):
    assert wrong(text) == found


def rows():
    """The glossary's rows: (word, meaning, where)."""
    cells = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in page("glossary").splitlines() if line[:1] == "|"]
    return [row for row in cells if row[0] not in ("word", "letter") and not row[0].startswith("---")]


def test_the_glossary_has_each_word_once_and_says_where():
    words = [word for first, *_ in rows() for word in first.replace("`", "").split(", ") if word != "..."]
    assert len(words) == len(set(words)) > 80, sorted(word for word in words if words.count(word) > 1)
    for row in rows():
        assert len(row) == 3, row
        single = {"B", "L, S", "H, K", "D, Dv", "E"}
        assert row[0] in single or PATHS.search(row[2]), row


@pytest.mark.parametrize("boxes", ["CALL", "CONVERSION"])
def test_the_stations_of_a_drawing_exist_and_its_page_tells_of_them(boxes):
    text = page({"CALL": "life-of-a-call", "CONVERSION": "life-of-a-conversion"}[boxes])
    for box in getattr(drawings(), boxes):
        assert wrong(f"`{box.name}` in `{box.path}`") == []
        assert any(box.name in found and found[2] == box.path for found in PLACES.findall(text)), box


def test_the_drawn_kernels_are_those_of_the_twins():
    for file in files("maskattn_*/kernels/__init__.py"):
        table = re.search(r"^KERNELS.*?\}", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
        assert re.findall(r'"(\w+)":', table) == list(drawings().KERNELS)


def test_the_drawn_figures_are_in_the_text():
    drawn, text = texts("life-of-a-call"), page("life-of-a-call")
    shares = [re.search(rf"^{title}: (\d+ %)$", drawn, re.MULTILINE)[1] for title in ("pairs allowed", "steps in JAX")]
    assert f"{shares[1]} of the pairs are computed where {shares[0]}" in " ".join(text.split())


def texts(name):
    """What is written in a drawing, which its file has as a text chunk (PNG specification, 11.3.4.5)."""
    data, at, found = (DOCS / f"{name}.png").read_bytes(), 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"iTXt":
            found.append(data[at + 8 : at + 8 + length].removeprefix(b"Description\0\0\0\0\0").decode())
        at += 12 + length
    (text,) = found
    return text


@pytest.mark.slow
@in_both
def test_the_port_in_a_picture_has_the_faults_that_its_page_names(monkeypatch, tmp_path):
    from click.testing import CliRunner

    from maskattn.cli.compare import command

    monkeypatch.chdir(DOCS / "port")
    result = CliRunner().invoke(command, ["original.py:model", "port.py:model", "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 1, result.output
    places = json.loads((tmp_path / "found.json").read_text())["places"]
    expected = [("factor is 0.176777, not 0.353553", "original.py:19"), ("gelu (tanh), not gelu", "original.py:36")] * 2
    for place, (fault, where) in zip(places, expected, strict=True):
        assert fault in place["diagnosis"] and where in place["torch"][0], place
        assert fault in " ".join(page("comparing").split())


def test_every_picture_is_shown_somewhere_and_loads_quickly():
    texts_of_pages = [file.read_text(encoding="utf-8") for file in (ROOT / "README.md", *DOCS.glob("*.md"))]
    pictures = sorted(DOCS.glob("*.png"))
    assert len(pictures) > 5
    for picture in pictures:
        assert any(f"{picture.name})" in text or f'"{picture.name}"' in text for text in texts_of_pages), picture
        assert picture.stat().st_size < 250_000, picture


@pytest.mark.parametrize(("name", "boxes"), [("life-of-a-call", "CALL"), ("life-of-a-conversion", "CONVERSION")])
def test_a_drawing_is_small_and_as_the_script_has_it(name, boxes):
    assert (DOCS / f"{name}.png").stat().st_size < 100_000
    assert f'<img src="{name}.png"' in page(name)
    drawn = texts(name).splitlines()
    for box in getattr(drawings(), boxes):
        assert {box.name, box.path, *box.lines} | ({box.refuses} - {""}) <= set(drawn), f"run docs/drawings.py: {box}"
