"""`maskattn parity faults`: known mistakes, planted; the suite must reject each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from maskattn.cli._progress import counting
from maskattn.cli.parity import _options

__all__ = ["command"]

#: The faults, what says which checks caught one in a twin, and what fails with nothing planted.
_Faults = tuple[Sequence[Any], Callable[[Any, str], list[str]], list[str]]


@click.command(name="faults")
@click.option("--training", is_flag=True, help="Those of training.")
@_options.wide
def command(training: bool, wide: bool) -> None:
    """Plant known faults in each twin and show that each is caught.

    Exit code 0: all were caught, and nothing where nothing was planted. 1: one was missed.
    """
    from rich.console import Console

    console = Console()
    with counting("with nothing planted" if training else "loading") as bar:
        from maskattn.parity.attention.adapters import TWINS
        from maskattn.parity.report import faults as report

        faults, caught, clean = _of_training() if training else _of_attention()
        seen: dict[str, list[list[str]]] = {twin: [] for twin in TWINS}
        bar.expect(len(faults) * len(seen))
        for fault in faults:
            for twin, checks_of in seen.items():
                bar.doing(f"{fault.name} in {twin}")
                checks_of.append(caught(fault, twin))
                bar.advance()
    title = "planted faults in training" if training else "planted faults"
    described = {fault.name: fault.description for fault in faults}
    report.render(title, described, seen, console, wide=wide, unplanted=clean)
    raise SystemExit(1 if clean or not all(checks for checks_of in seen.values() for checks in checks_of) else 0)


def _of_attention() -> _Faults:
    from maskattn.parity.attention.fault_list import FAULTS
    from maskattn.parity.attention.faults import caught

    return FAULTS, caught, []


def _of_training() -> _Faults:
    from maskattn.parity.training.faults import FAULTS, caught, with_nothing_planted

    return FAULTS, caught, with_nothing_planted()
