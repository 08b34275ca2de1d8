"""The command's shell: what it lists, that it loads a command only when called, and what it says to a wrong name."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import maskattn
import maskattn.cli
from maskattn.cli.main import main
from maskattn.cli.parity import command
from maskattn.cli.parity._old_flags import renewed

LIGHT = "import click\n@click.command()\ndef command():\n    'Weigh nothing.'\n    click.echo('light ran')\n"
BROKEN = "raise RuntimeError('loaded')\n"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Two more commands beside the real ones: one that works, and one that cannot be loaded."""
    (tmp_path / "light.py").write_text(LIGHT)
    (tmp_path / "heavy.py").write_text(BROKEN)
    (tmp_path / "_private.py").write_text(BROKEN)
    monkeypatch.setattr(maskattn.cli, "__path__", [*maskattn.cli.__path__, str(tmp_path)])
    yield
    for name in ("light", "heavy", "_private"):
        sys.modules.pop(f"maskattn.cli.{name}", None)
        maskattn.cli.__dict__.pop(name, None)


def test_help_lists_the_commands_that_exist():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    listed = main.list_commands(click.Context(main))
    assert "parity" in listed
    assert "main" not in listed
    for name in listed:
        assert f"\n  {name} " in result.output


def test_every_command_has_help():
    for name in main.list_commands(click.Context(main)):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: main {name}")


@pytest.mark.parametrize(
    ("missing", "module", "code"),
    [
        ("jax", ["maskattn_jax.rng"], 1),
        ("torch", ["maskattn_torch.rng"], 1),
        ("torch", ["maskattn", "parity", "faults"], 2),
        ("torch", ["maskattn", "parity", "training", "--cases", "mlm/adamw/float32"], 2),
    ],
)
def test_without_its_framework_a_twin_or_a_command_says_what_to_install(missing, module, code):
    run = [sys.executable, "tests/without.py", missing, "-m", *module]
    done = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert re.fullmatch(rf"\w*Error: maskattn_{missing} needs .*: pip install 'maskattn\[{missing}\]'", last), last
    assert code == 1 or "Traceback" not in done.stderr, done.stderr


def test_a_command_runs_without_loading_the_others(planted):
    result = CliRunner().invoke(main, ["light"])
    assert (result.exit_code, result.output) == (0, "light ran\n")
    assert "maskattn.cli.heavy" not in sys.modules


def test_a_command_that_cannot_be_loaded_is_not_hidden(planted):
    result = CliRunner().invoke(main, ["heavy"])
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize("name", ["_private", "main", "ligth"])
def test_a_wrong_name_is_answered_with_the_right_ones(planted, name):
    result = CliRunner().invoke(main, [name])
    assert result.exit_code == 2
    assert f"no command '{name}'" in result.output
    assert "convert, heavy, inspect, light, parity" in result.output
    assert ("Did you mean 'light'?" in result.output) is (name == "ligth")


def test_version():
    assert importlib.metadata.version("maskattn") == maskattn.__version__
    assert CliRunner().invoke(main, ["--version"]).output == f"maskattn, version {maskattn.__version__}\n"


def test_the_installed_script_is_this_command():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="maskattn")
    assert script.load() is main
    result = subprocess.run([sys.executable, "-m", "maskattn", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: maskattn [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipes.bigbird(1024)", "--q", "1024", "--batch", "123456", "--heads", "1234", "--tile", "16"),
        ("causal & window(255)", "--q", "300"),
        ("padding([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) & segments([[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]])", "--why", "3,0,6,4"),
        ("corruption",),
    ],
)
def test_what_show_prints_fits_80_columns(arguments, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    result = CliRunner().invoke(main, ["show", *arguments])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80 and "…" not in result.output


OLD_FLAGS = {
    ("--list",): ["list"],
    ("--cases", "x", "--list"): ["list", "--cases", "x"],
    ("--faults",): ["faults"],
    ("--training", "--faults"): ["faults", "--training"],
    ("--training", "--cases", "mlm", "--png", "a b.png"): ["training", "--cases", "mlm", "--png", "a b.png"],
    ("--json", "x.json", "--real"): ["real", "--json", "x.json"],
    ("--checkpoint", "a", "--against", "b"): ["checkpoint", "a", "--against", "b"],
    ("--kernel", "exact", "--checkpoint=a b"): ["checkpoint", "a b", "--kernel", "exact"],
}


@pytest.mark.parametrize(("old", "new"), OLD_FLAGS.items())
def test_a_flag_of_old_is_the_subcommand_of_today(old, new, capsys):
    assert renewed(list(old)) == new
    out, error = capsys.readouterr()
    assert not out and error.startswith(f"DeprecationWarning: write `maskattn parity {shlex.join(new)}`; --")


def test_no_subcommand_is_run_and_the_flags_of_old_are_not_listed(capsys):
    same = [CliRunner().invoke(main, ["parity", *run, "--cases", "no-such-case"]).output for run in ([], ["run"])]
    assert same[0] == same[1] and "matches none of the cases" in " ".join(same[0].split())
    assert renewed(["--cases", "x", "--verbose"]) == ["--cases", "x", "--verbose"] and not capsys.readouterr().err
    listed = CliRunner().invoke(main, ["parity", "--list", "--cases", "Full/"])
    assert (
        listed.exit_code == 0 and "Full/square/float32/0\n" in listed.stdout and "DeprecationWarning" in listed.stderr
    )
    for name in ("", *command.list_commands(click.Context(command))):
        text = CliRunner().invoke(main, ["parity", *name.split(), "--help"]).output
        assert not re.search(r"^  (-\S, )?--(real|checkpoint|list|faults)\b", text, re.MULTILINE)
    assert command.list_commands(click.Context(command)) == [
        "against",
        "checkpoint",
        "faults",
        "list",
        "models",
        "real",
        "run",
        "training",
    ]
