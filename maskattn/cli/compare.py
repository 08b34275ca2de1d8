"""`maskattn compare`: where a JAX port of a PyTorch model parts from it, and what it does otherwise there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from maskattn.cli import _written
from maskattn.cli._progress import spinning

__all__ = ["command"]


@click.command(name="compare")
@click.argument("torch_side", metavar="TORCH")
@click.argument("jax_side", metavar="JAX")
@click.option(
    "--inputs",
    "inputs_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="Arrays by the names of arguments, where the sides bring none.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    show_default=True,
    help="What is computed in, whatever the programs ask for.",
)
@click.option("--grads", is_flag=True, help="Compare the gradients of all parameters too.")
@_written.json
@click.option("--html", "html_path", type=_written.NewFile(), help="Write the results here as a page.")
@_written.wide
def command(
    torch_side: str,
    jax_side: str,
    inputs_path: Path | None,
    dtype: str,
    grads: bool,
    json_path: Path | None,
    html_path: Path | None,
    wide: bool,
) -> None:
    """Find where a JAX port of a PyTorch model parts from it, and what it does otherwise there.

    TORCH and JAX are each FILE.py:NAME or MODULE:NAME. NAME is the module or function itself, or a function without
    arguments that gives it, or that gives it with its inputs: (function, {"tokens": ...}). Parameters are found where
    the function holds them: functools.partial(port, params).

    Exit code 0: outputs, and with --grads gradients, are equal. 1: they differ. 2: nothing was compared.
    """
    from rich.console import Console

    console = Console()
    with spinning("loading") as bar:
        try:
            from maskattn.diagnose import compare
            from maskattn.parity.report import comparison as results
            from maskattn.parity.report.page import write_text
            from maskattn.parity.report.table import say

            sides = [_loaded(torch_side), _loaded(jax_side)]
            inputs = _inputs(sides, inputs_path)
            report = compare(
                sides[0][0],
                sides[1][0],
                inputs,
                dtype=dtype,
                grads=grads,
                progress=bar.doing,
            )
        except click.ClickException:
            raise
        except Exception as error:  # the sides are programs of others, which may fail in any way
            if not isinstance(error, (ImportError, OSError, ValueError)):
                traceback.print_exc()
            raise _Nothing(f"nothing was compared: {error or type(error).__name__}") from error
    results.render(report, console, wide=wide)
    with _written.writing():
        if json_path is not None:
            json_path.write_text(results.as_json(report), encoding="utf-8")
        if html_path is not None:
            write_text(results.as_html(report), html_path)
            say(console, f"wrote {html_path}")
    raise SystemExit(0 if report.ok else 1)


class _Nothing(click.ClickException):
    """Nothing was compared."""

    exit_code = 2


def _loaded(side: str) -> tuple[Callable[..., object], Any]:
    """A side's function, and its inputs or None."""
    where, _, name = side.rpartition(":")
    if not where or not name:
        raise click.UsageError(f"expected FILE.py:NAME or MODULE:NAME, got {side!r}")
    module = _module(where)
    if not hasattr(module, name):
        raise click.UsageError(f"{where} has no {name}; it has {', '.join(_public(module)) or 'nothing'}")
    found = getattr(module, name)
    if inspect.isfunction(found) and not inspect.signature(found).parameters:
        found = found()
    function, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not callable(function):
        expected = "a module or a function, or a function without arguments that gives one, alone or with its inputs"
        raise click.UsageError(f"{side}: expected {expected}, got {type(function).__name__}")
    return function, inputs


def _public(module: Any) -> list[str]:
    return [name for name, one in vars(module).items() if not name.startswith("_") and callable(one)]


def _module(where: str) -> Any:
    """A module by its name, or a file, which finds what lies beside it as a script does."""
    sys.path[:0] = [str(Path(where).absolute().parent)] if where.endswith(".py") else [str(Path.cwd())]
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise click.UsageError(f"there is no file {where}")
        known = sys.modules.get(path.stem)
        if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path.resolve():
            return known  # both sides in one file are one program
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    finally:
        del sys.path[0]


def _inputs(sides: list[tuple[Callable[..., object], Any]], path: Path | None) -> Any:
    """The file's, or what the sides bring; one that brings none is given the other's."""
    import numpy as np

    brought = [inputs for _, inputs in sides if inputs is not None]
    if path is not None:
        if brought:
            raise click.UsageError("--inputs: the sides bring inputs of their own; leave one of both out")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    if not brought:
        raise click.UsageError("no inputs: give --inputs FILE.npz, or let a side give (function, inputs)")
    return tuple(brought[0] if inputs is None else inputs for _, inputs in sides)
