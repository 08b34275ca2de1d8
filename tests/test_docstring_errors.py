"""Errors in docstrings, as the reference reads them: one begins a line, and what goes on is indented."""

import re
from pathlib import Path


def run_on(text):
    """Lines below "Raises:" that go on with what was said of an error, and are not indented: each would be an error."""
    for section in re.finditer(r"^( *)Raises:\n((?:\1    .*\n)+)", text, re.MULTILINE):
        indent = section[1] + "    "
        for line in section[2].splitlines():
            if not re.match(rf"{indent}(    |[\w.]+(, [\w.]+)*:)", line):
                yield line.strip()


def test_each_error_begins_a_line_and_what_goes_on_is_indented():
    root = Path(__file__).parents[1]
    folders = [root / package for package in ("maskattn", "maskattn_jax", "maskattn_torch")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    found = [(file.name, line) for file in files for line in run_on(file.read_text(encoding="utf-8"))]
    assert len(files) > 200 and found == []
    assert [*run_on("Raises:\n    ValueError: a size, or\n    a shape.\n")] == ["a shape."]
