"""The command's shell: what it lists, that it loads a command only when called, and what it says to a wrong name."""

import importlib.metadata
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import maskattn
import maskattn.cli
from maskattn.cli.main import main

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
    result = subprocess.run(
        [sys.executable, "-m", "maskattn.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("Usage: maskattn [OPTIONS] COMMAND [ARGS]...")
