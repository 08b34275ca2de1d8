"""`maskattn parity run`: every case in every implementation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from maskattn.cli._progress import counting
from maskattn.cli.parity import _options

if TYPE_CHECKING:
    from maskattn.parity.attention.adapters import Adapter
    from maskattn.parity.attention.case import Case

__all__ = ["command"]


@click.command(name="run")
@_options.cases
@click.option(
    "--kernel",
    help="The twins' kernel. exact (the default): every bit equal; any other: within the bounds of the float64 oracle, "
    "which is also what --impl is held to unless this says exact. blockwise: in tiles so small that most cases have "
    "several.",
)
@click.option(
    "--samples", type=click.IntRange(min=0), default=0, metavar="N", help="Draw random cases until N numbers."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    help="Where the twins run. gpu: a fixed sample of at most 60 cases, within 6 minutes, unless --cases chooses some.",
)
@click.option("--all", "every", is_flag=True, help="With --device gpu: every case, however long it takes.")
@click.option("--impl", "specs", multiple=True, metavar="PKG.MOD:ADAPTER", help="Judge this instead of the twins.")
@_options.json
@click.option("--html", "html_path", type=_options.NewFile(), help="Write a page of it here.")
@_options.wide
@click.option("--verbose", is_flag=True, help="Show every failure, not the first 20.")
def command(
    pattern: str | None,
    kernel: str | None,
    samples: int,
    device: str,
    every: bool,
    specs: tuple[str, ...],
    json_path: Path | None,
    html_path: Path | None,
    wide: bool,
    verbose: bool,
) -> None:
    """Run the same attention in every implementation and compare.

    By default both twins (and, for the exact kernel, NumPy itself) run every case; a float64 oracle judges each, and in
    exact mode every bit of output and gradients must agree. Exit code 0: every case ran and held. 1: something failed
    or nothing ran. 3: nothing failed, but some cases did not run (the table says which, and why).
    """
    from rich.console import Console

    console = Console()
    with counting("loading") as bar:
        from maskattn.parity.attention.cases import select
        from maskattn.parity.attention.run import run_cases
        from maskattn.parity.attention.sample import SECONDS, sample
        from maskattn.parity.report import cases as report

        kernel = (kernel or "given") if specs else _options.known(kernel or "exact")
        if every and device == "cpu":
            raise click.UsageError("--all goes with --device gpu: on the CPU every case is run anyway")
        sampled = device == "gpu" and pattern is None and not every
        selected = sample() if sampled else select(pattern)
        if not selected and not samples:
            raise click.UsageError(
                f"--cases {pattern!r} matches none of the cases; `maskattn parity list` shows their ids"
            )
        implementations = _implementations(kernel, specs, device)
        bar.expect(len(selected))

        def advance(case: Case, elements: int) -> None:
            bar.doing(f"{elements:,} numbers · {case.id}")
            bar.advance()

        result = run_cases(
            selected,
            implementations,
            kernel=kernel,
            samples=samples,
            seconds=SECONDS if sampled else None,
            progress=advance,
        )
    report.render(result, console, wide=wide, verbose=verbose)
    with _options.writing():
        if json_path is not None:
            json_path.write_text(report.as_json(result))
        if html_path is not None:
            from maskattn.parity.report import cases_page

            cases_page.write(result, html_path)
    raise SystemExit(result.exit_code)


def _alone(error: Exception) -> str:
    """How the other twin is run by itself, where a framework is missing."""
    other = {"torch": "jax", "jax": "torch"}.get(str(getattr(error, "name", "")).split(".")[0])
    return f"; --impl maskattn_{other}.testing.adapter:ADAPTER runs the other twin alone" if other else ""


def _implementations(kernel: str, specs: tuple[str, ...], device: str) -> list[Adapter]:
    from maskattn.parity.attention import adapters

    if device == "gpu":
        # JAX would otherwise take three quarters of the memory, from PyTorch too
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        with _found_here():
            found = [adapters.load(spec) for spec in specs] if specs else adapters.standard(kernel, device)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        hint = "" if specs else _alone(error)
        raise click.ClickException(f"cannot load an implementation: {error}{hint}") from error
    if device == "gpu":
        found = [_placed(adapter, device) for adapter in found] if specs else found
        missing = [why for adapter in found if (why := getattr(adapter, "without", str)())]
        if missing:
            raise click.ClickException(f"--device gpu: {'; '.join(missing)}")
    return found


@contextlib.contextmanager
def _found_here() -> Iterator[None]:
    """Modules of the folder in which the command is run are found, as `python -m` finds them."""
    sys.path.insert(0, here := str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(here)


def _placed(adapter: Any, device: str) -> Adapter:
    """A twin's adapter on the device; what is no twin's has to place its arrays itself."""
    if not hasattr(adapter, "device"):
        raise click.UsageError(f"--device places the twins; {adapter.name} has to place its arrays itself")
    return cast("Adapter", dataclasses.replace(adapter, device=device))
