"""The matrix against PyTorch, Flax and jax.nn: every cell holds, what is known to differ does, a wrong one shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import masks
from maskattn.cli.main import main
from maskattn.parity.against.libraries.cases import CASES, PEERS
from maskattn.parity.against.libraries.differences import DIFFERENCES
from maskattn.parity.against.libraries.run import COLUMNS, Row, examine
from maskattn.parity.report.libraries import as_json, as_page

PAGE = Path(__file__).parents[3] / "docs" / "against-libraries.md"

pytestmark = [pytest.mark.torch, pytest.mark.jax]


def named(case):
    return f"{case.peer}: {case.name}"


#: Flax's modules take seconds to compile: two rows of each here, the others are slow.
QUICK = [case for case in CASES if "module flax" not in case.peer or case.name in ("mask, bool", "decode")]


@pytest.mark.parametrize("case", QUICK, ids=named)
def test_every_cell_holds(case):
    row = examine(case, quick=True)
    assert row.held, row.cells
    assert tuple(row.cells) == tuple(COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if "flax" in case.peer], ids=named)
def test_every_cell_holds_in_flaxs_modules_and_in_their_place(case):
    assert examine(case).held


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: f"{each.peer}: {each.about}")
def test_what_is_known_to_differ_does_as_listed(difference):
    theirs, ours = difference.seen()
    assert theirs, f"no longer {difference.theirs}"
    assert ours, f"no longer {difference.ours}"


@pytest.mark.parametrize("case", [c for c in CASES if "torch" in c.peer and c.given], ids=named)
def test_an_argument_that_is_lost_shows(case):
    lost = replace(case, given={name: x for name, x in case.given.items() if name == "enable_gqa"})
    assert not examine(case, changed=lost).held


@pytest.mark.parametrize("mask", [masks.SlidingWindow(1, 0), masks.SlidingWindow(3, 0), masks.Causal()], ids=str)
def test_another_mask_shows(mask):
    (case,) = (c for c in CASES if c.name == "local_window_size and is_causal")
    wrong = examine(replace(case, mask=mask))
    assert not wrong.held and all(cell[0] > 1 for cell in wrong.cells.values() if cell is not None)


def expected():
    """The rows as they are when everything holds, without running them."""
    return [
        Row(case, {c: (0.0, "") if c != "drop-in" or PEERS[case.peer][1] else None for c in COLUMNS}) for case in CASES
    ]


def test_the_page_is_current():
    assert PAGE.read_text() == as_page(expected(), [(each, True) for each in DIFFERENCES])


def test_what_fails_is_named(monkeypatch):
    case = CASES[0]
    row = Row(case, {c: (3.0 if c == "JAX" else 0.0, "gradient of query") for c in COLUMNS})
    monkeypatch.setattr("maskattn.parity.against.libraries.run.matrix", lambda cases, progress: iter([row]))
    known = [(DIFFERENCES[0], False)]
    monkeypatch.setattr("maskattn.parity.against.libraries.run.seen", lambda differences, progress: iter(known))
    said = CliRunner().invoke(main, ["parity", "against", "libraries"])
    words = " ".join(said.output.split())
    assert said.exit_code == 1 and f"{case.name}, JAX: gradient of query" in words
    assert "no longer NaN there" in words and "FAILED: 2 of 1 rows and 1 known differences" in words
    assert '"held": false' in as_json([row], known) and "FAILED" in as_page([row], known)


def test_an_empty_choice_proves_nothing():
    said = CliRunner().invoke(main, ["parity", "against", "libraries", "--types", "keras"])
    assert said.exit_code == 2 and "nothing matches 'keras'" in said.output


def test_every_peer_has_rows_and_every_weight_is_drawn():
    assert {case.peer for case in CASES} == set(PEERS)
    assert len({named(case) for case in CASES}) == len(CASES)
    assert all(np.isfinite(examine(c).cells["oracle"][0]) for c in CASES[:1])
