"""docs/notebook.ipynb runs from top to bottom, and prints what it was committed with."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from tests.frameworks import in_both

PATH = Path(__file__).parents[1] / "docs/notebook.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    """What a cell wrote to its standard output when it was committed."""
    return "".join("".join(x["text"]) for x in cell["outputs"] if x.get("name") == "stdout")


def test_it_is_a_small_notebook_of_format_4():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(names) == len(set(names)) and {cell["cell_type"] for cell in NOTEBOOK["cells"]} == {"code", "markdown"}
    assert all(cell.keys() == {"cell_type", "id", "metadata", "source", "outputs", "execution_count"} for cell in CODE)
    assert PATH.stat().st_size < 60_000


@in_both
def test_it_runs_and_prints_what_it_shows(monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in CODE:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("".join(cell["source"]), PATH.name, "exec"), names)
        assert out.getvalue() == printed(cell), cell["id"]
    assert sum(bool(printed(cell)) for cell in CODE) == 3
