"""`maskattn parity models`: what holds is said to, what does not is named, and the page of the docs is current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from maskattn.cli.main import main
from maskattn.parity.models import run
from maskattn.parity.models.run import COLUMNS, Cell, Row, chosen, matrix
from maskattn.parity.models.tiny import TINY, Tiny
from maskattn.parity.report.models_page import as_page

pytest.importorskip("transformers")
PAGE = Path(__file__).parents[3] / "docs" / "models-table.md"


def said(*arguments):
    done = CliRunner().invoke(main, ["parity", "models", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.mark.torch
@pytest.mark.jax
def test_a_model_is_run_and_told(tmp_path):
    files = tmp_path / "a.json", tmp_path / "a.html"
    code, output = said("--types", "olmo2", "--dtype", "float32", "--json", files[0], "--html", files[1])
    assert code == 0, output
    assert "1 models: all held" in output and max(map(len, output.splitlines())) <= 80
    (row,) = json.loads(files[0].read_text())["rows"]
    assert row["held"] and set(row["cells"]) == {"hidden", "logits", "gradients"}
    assert all(0 < cell["share"] <= 1 for cell in row["cells"].values())
    assert "olmo2" in files[1].read_text() and "all held" in files[1].read_text()


def test_what_is_not_run_is_told(monkeypatch):
    code, output = said("--types", "lama5")
    assert code == 2 and "no model matches 'lama5'" in output
    rotary = {"rope_parameters": {"rope_type": "proportional", "rope_theta": 10000.0, "factor": 2.0}}
    monkeypatch.setitem(TINY, "bart_of_another_kind", Tiny("No", {}))
    monkeypatch.setitem(TINY, "llama+refused", Tiny("LlamaForCausalLM", {**TINY["qwen2"].config, **rotary}))
    refused, unknown = matrix(["llama+refused", "bart_of_another_kind"], ("hidden",))
    assert not refused.held and refused.error
    assert not unknown.held and unknown.error
    code, output = said("--types", "bart_of_another_kind", "--dtype", "float32")
    assert code == 1 and "FAILED: 1 of 1 models" in output and unknown.error.split()[0] in output


def test_what_differs_is_named(monkeypatch):
    cells = {"hidden": Cell(0.5, "jax hidden_states.2"), "logits": None, "gradients": Cell(7.0, "torch a.weight")}
    monkeypatch.setattr(run, "examine", lambda name, columns: Row(name, cells))
    code, output = said("--types", "gemma", "--dtype", "float32")
    assert code == 1 and "gemma, gradients: torch a.weight" in output and f"FAILED: {len(chosen('gemma'))}" in output


def test_models_are_chosen_by_name():
    assert chosen("stablelm*") == ("stablelm", "stablelm+sequential") and chosen() == tuple(TINY)


def test_the_page_is_current():
    """Written by `maskattn parity models --page docs/models-table.md`."""
    cells = dict.fromkeys(COLUMNS, Cell(0.0, ""))
    assert PAGE.read_text(encoding="utf-8") == as_page([Row(name, cells) for name in TINY])
