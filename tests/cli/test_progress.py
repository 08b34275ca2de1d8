"""Commands show that they work: before they load a framework, on a terminal alone, and never on stdout."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest

from maskattn.cli.main import main

#: Each command that can take longer than a second, and what begins it.
BEGUN = {
    "compare": ("compare", "original.py:side", "port.py:side"),
    "convert": ("convert", "model.npz", "there.npz"),
    "inspect": ("inspect", "model.npz"),
    "parity against": ("parity", "against", "libraries"),
    "parity checkpoint": ("parity", "checkpoint", "model"),
    "parity faults": ("parity", "faults"),
    "parity models": ("parity", "models"),
    "parity models --released": ("parity", "models", "--released"),
    "parity real": ("parity", "real"),
    "parity run": ("parity",),
    "parity training": ("parity", "training"),
    "show": ("show", "causal", "--q", "8"),
}
#: What only prints what is known at once.
AT_ONCE = {"parity list"}
#: Says of each command given what it shows first, and which frameworks are loaded by then.
FIRST = """
import json, sys
from maskattn.cli import _progress
from maskattn.cli.main import main

class Shown(BaseException):
    pass

def shown(bar):
    raise Shown(bar._progress.tasks[0].description)

_progress.Bar.__enter__ = shown
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
        print("null")
    except Shown as first:
        print(json.dumps([str(first), sorted({"flax", "jax", "torch", "transformers"} & set(sys.modules))]))
    except SystemExit:
        print("null")
"""


def commands(group, before=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield " ".join((*before, name))


def test_every_command_is_tried():
    assert {name.partition(" --")[0] for name in BEGUN} | AT_ONCE == set(commands(main))


def test_each_command_shows_that_it_works_before_it_loads_a_framework():
    run = [sys.executable, "-c", FIRST, json.dumps(list(BEGUN.values()))]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    found = dict(zip(BEGUN, map(json.loads, said), strict=True))
    assert {name: first for name, first in found.items() if first is None or not first[0] or first[1]} == {}


@pytest.mark.parametrize("watched", [True, False])
def test_it_is_shown_on_a_terminal_and_what_is_printed_is_the_same(watched, tmp_path):
    run = [sys.executable, "-m", "maskattn", "show", "causal & window(2, 0)", "--q", "8"]
    mine, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[2])}
    with open(tmp_path / "said", "w+b") as file:
        stderr = theirs if watched else file
        stdout = subprocess.run(run, stdout=subprocess.PIPE, stderr=stderr, env=environment, check=True).stdout
        os.write(theirs, b"end")  # so that there is something to read
        os.close(theirs)
        file.seek(0)
        shown = os.read(mine, 100_000).removesuffix(b"end") + file.read()
    os.close(mine)
    assert (b"counting pairs and tiles" in shown) is watched and (watched or not shown), shown
    assert b"\x1b" not in stdout and b"counting" not in stdout
    assert stdout.decode().startswith("Causal() & SlidingWindow(2)\n8 queries x 8 keys")


def test_names_are_shown_as_they_are(monkeypatch):
    from maskattn.cli import _progress

    with _progress.of_bytes("writing", 10) as bar:
        bar.moved("blocks[0]", 4)
        bar.moved("blocks[0]", 0)
        (task,) = bar._progress.tasks
        assert (task.completed, task.total, task.description) == (4, 10, "blocks[0]")
    with _progress.counting("loading") as bar:
        (task,) = bar._progress.tasks
        assert task.total is None
        bar.expect(3)
        bar.advance()
        bar.doing("one")
        assert (task.completed, task.total, task.description) == (1, 3, "one")
