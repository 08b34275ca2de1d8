"""What is printed can be read at 80 columns, on a terminal and in a pipe: every figure whole, and the verdict."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from rich.console import Console

from maskattn.parity.attention.fault_list import FAULTS
from maskattn.parity.report import cases, checkpoint, faults, training
from maskattn.parity.report.table import say
from maskattn.parity.training import faults as training_faults
from maskattn.parity.training.run import Setting, TrainingOutcome as Trained, judge
from tests import results


def _cases():
    """What is hard to show of cases, and its sum."""
    figures = ["Causal", "987,654,321,012", "493,827,160,506", "0.267", "3e+09", "held", "FAILED", "not run", "all"]
    return lambda **options: cases.render(results.of_cases(), **options), figures, ["3e+30", "4e+30", "66.7"]


def _checkpoint():
    figures = ["1,769,472", "1.2e-06", "1.5e-07", "3.5e-04", "nan", "0.004", "2e+308", "held", "FAILED"]
    return lambda **options: checkpoint.render(results.of_checkpoint(), **options), figures, []


def _training():
    curve = np.linspace(4.0, 1.0, 100)
    curves = {"torch": curve, "jax": curve * (1 + 2.4e-7), "torch to jax": curve[50:], "jax to torch": curve[50:] * 1.5}
    apart = {"jax": (1.6e-7, 2.2e-7), "torch to jax": (2.7e-7, 3e-7), "jax to torch": (2e-7, 3e-7)}
    runs = [judge(Trained(Setting("causal", "adamw", "float32"), curves, apart))]
    runs.append(Trained(Setting("causal", "adamw", "float64"), error="RuntimeError: no such luck"))
    figures = ["causal/adamw/float32", "2.4e-07", "1.6e-07", "5.0e-01", "2e+05", "FAILED"]
    return (
        lambda **options: training.render(runs, steps=100, **options),
        figures,
        ["(2.2e-07)", "2.7e-07", "1e-06 / 3e-06"],
    )


def _faults(listed=FAULTS):
    described = {fault.name: fault.description for fault in listed}
    seen = {"torch": [["tier0", "tier2", "form"]] * len(listed), "jax": [["module"]] * (len(listed) - 1) + [[]]}
    figures = [*described, "MISSED", f"{len(listed)} faults in 2 twins, 1 missed"]
    return lambda **options: faults.render("planted", described, seen, **options), figures, ["tier0, tier2, form"]


TABLES = {
    "cases": _cases,
    "checkpoint": _checkpoint,
    "training": _training,
    "faults": _faults,
    "faults in training": lambda: _faults(training_faults.FAULTS),
}


def printed(render, wide, columns=80):
    out = io.StringIO()
    render(console=Console(file=out, width=columns), wide=wide)
    return out.getvalue()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("columns", [80, 120])
def test_the_columns_that_matter_fit(table, columns):
    render, figures, more = table()
    text = printed(render, False, columns)
    assert all(len(line) <= columns or " " not in line for line in text.splitlines()) and "…" not in text
    for figure in figures:
        assert re.search(rf"(?<!\S){re.escape(figure)}(?!\S)", text), (figure, text)
    assert not any(figure in text for figure in more)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_wide_shows_every_column_however_many_there_are(table):
    render, figures, more = table()
    text = printed(render, True)
    assert "…" not in text
    for figure in [*figures, *more]:
        assert figure in text, (figure, text)
    assert printed(render, True, 60).count("\n") >= text.count("\n")


def test_no_terminal_is_too_narrow_for_a_figure():
    for table in TABLES.values():
        render, figures, _ = table()
        text = printed(render, False, 30)
        assert "…" not in text
        for figure in figures:
            assert figure in text or not re.fullmatch(r"[\d.,e+-]+|held|FAILED|MISSED", figure), (figure, text)


def test_a_name_that_is_longer_than_a_line_stays_whole():
    out = io.StringIO()
    say(Console(file=out, width=80), f"against {'x' * 100}/weights.safetensors: differs at [0, 1]\n  next", "red")
    assert out.getvalue() == f"against\n{'x' * 100}/weights.safetensors:\ndiffers at [0, 1]\n  next\n"


ARGUMENTS = ("parity", "--cases", "Full/*/float32/0", "--impl", "maskattn.parity.attention.adapters:NumpyExact")


def _in_a_pipe(*more):
    command = [sys.executable, "-m", "maskattn", *ARGUMENTS, *more]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout


def _on_a_terminal(*more):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "maskattn", *ARGUMENTS, *more]
    process = subprocess.Popen(command, env=environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    found = b""
    try:
        while piece := os.read(ours, 1 << 16):
            found += piece
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", found.decode())
    return text[text.rindex("kernel given") :].replace("\r", "")


@pytest.mark.parametrize("run", [_in_a_pipe, _on_a_terminal])
def test_the_command_itself(run):
    text = run()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert re.search(r"^ Full +3 +[\d,]+ +0 +0\.\d\d\d +held *$", text, re.MULTILINE), text
    assert text.endswith("every case ran and held\n") and "p99" not in text
    assert re.search(r"^ Full( +[\d.,e+-]+){8} +held *$", run("--wide"), re.MULTILINE)
