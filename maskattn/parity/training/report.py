"""The runs' results as a table, a line per setting, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from maskattn.parity.report import environment
from maskattn.parity.training.run import FIRST, Outcome
from maskattn.parity.training.tasks import TASKS
from maskattn.standards import value

_NOTE = (
    "loss: the largest |JAX - PyTorch| / PyTorch over the first {first} steps, and over all. parameters: at the end, "
    "of a tensor by its norm (in brackets of an element); key biases left out. to JAX, to PyTorch: half way a run "
    "moves over, with parameters, moments, step count and key; its losses and parameters against the run that stayed. "
    "limit: of the first {first} losses / of all else."
)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 only if something ran and everything held."""
    return 0 if outcomes and all(outcome.held for outcome in outcomes) else 1


def render(outcomes: Sequence[Outcome], console: Any, *, steps: int) -> None:
    """The table, and every failure."""
    from rich import box
    from rich.table import Table

    kernels = ", ".join(sorted({outcome.setting.kernel for outcome in outcomes}))
    table = Table(
        title=f"training, {steps} steps, dropout on, kernel {kernels}: PyTorch and JAX",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in ("task", "optimizer", "dtype"):
        table.add_column(column, no_wrap=True)
    for column in (f"loss\n{FIRST} steps", f"\n{steps} steps", "parameters", "to JAX", "to PyTorch", "limit", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in outcomes:
        setting = outcome.setting
        status = "[green]held[/]" if outcome.held else "[bold red]FAILED[/]"
        table.add_row(setting.task, setting.optimizer, setting.dtype, *_cells(outcome), status)
    console.print(table)
    for name in dict.fromkeys(outcome.setting.task for outcome in outcomes):
        console.print(f"{name}: {TASKS[name].title}", style="dim")
    console.print(_NOTE.format(first=FIRST), style="dim")
    for outcome in outcomes:
        if outcome.error is not None:
            console.print(f"{outcome.setting.id}: {outcome.error}", style="red", markup=False)
        for finding in outcome.findings:
            if not finding.held:
                console.print(f"{outcome.setting.id}: {finding}", style="red", markup=False)
    held = sum(outcome.held for outcome in outcomes)
    verdict = "every run held" if exit_code(outcomes) == 0 else "FAILED"
    console.print(f"{held} of {len(outcomes)} settings held: {verdict}", style="bold")


def _cells(outcome: Outcome) -> list[str]:
    dtype = outcome.setting.dtype
    limit = f"{value(f'tier3.{dtype}.first'):.0e} / {value(f'tier3.{dtype}'):.0e}"
    if outcome.error is not None:
        return ["", "", "", "", "", limit]
    losses = outcome.difference("jax")
    norm, element = outcome.apart["jax"]
    crossed = (f"{max(outcome.difference(run).max(), outcome.apart[run][0]):.1e}" for run in _CROSSED)
    return [f"{losses[:FIRST].max():.1e}", f"{losses.max():.1e}", f"{norm:.1e} ({element:.1e})", *crossed, limit]


_CROSSED = ("torch to jax", "jax to torch")


def as_json(outcomes: Sequence[Outcome]) -> str:
    """The same as data: the machine, the versions, every loss (its repr is exact), every finding."""
    runs = [
        {
            "setting": vars(outcome.setting),
            "held": outcome.held,
            "error": outcome.error,
            "losses": {run: curve.tolist() for run, curve in outcome.curves.items()},
            "parameters": {run: {"norm": norm, "element": most} for run, (norm, most) in outcome.apart.items()},
            "findings": [vars(finding) for finding in outcome.findings],
        }
        for outcome in outcomes
    ]
    return json.dumps({"exit_code": exit_code(outcomes), "environment": environment(), "runs": runs}, indent=1)
