"""The README does what it says: its Python runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import click

from maskattn.cli.main import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run_one_after_the_other():
    code = blocks("python")
    assert len(code) == 3
    namespace = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_commands_and_their_options_exist():
    lines = "".join(blocks("sh")).splitlines() + re.findall(r"`(maskattn parity[^`]*)`", TEXT)
    called = [shlex.split(line) for line in lines if line.startswith("maskattn ")]
    assert called
    for _, name, *arguments in called:
        command = main.get_command(click.Context(main), name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("-")} <= known


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for file in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        text = (ROOT / file).read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:^ *|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"parity", "test", "lint"} <= named <= targets


def test_every_link_leads_to_a_file():
    for file in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / file).read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{file}: {link}"
