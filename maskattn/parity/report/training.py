"""Training runs as a table, a line per setting, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from maskattn import standards
from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import print_table, say, share_text
from maskattn.parity.training.run import FIRST, TrainingOutcome, exit_code
from maskattn.parity.training.tasks import TASKS

_NOTE = (
    "loss: the largest |JAX - PyTorch| / PyTorch over the first {first} steps, and over all. parameters: at the end, "
    "of a tensor by its norm; key biases left out. {moved}: half way a run moves over, with parameters, moments, step "
    "count and key; its losses and parameters against the run that stayed. error/limit: the largest as a share of its "
    "limit."
)
_WIDE = " In brackets: of an element. limit: of the first {first} losses / of all else."


def render(outcomes: Sequence[TrainingOutcome], console: Console, *, steps: int, wide: bool = False) -> None:
    """The table, and every failure."""
    kernels = ", ".join(sorted({outcome.setting.kernel for outcome in outcomes}))
    say(console, f"training, {steps} steps, dropout on, kernel {kernels}: PyTorch and JAX")
    losses = (f"loss\n{FIRST} steps", f"\n{steps} steps")
    moved = ["to\nJAX", "to\nPyTorch", "\nlimit"] if wide else ["\nmoved"]
    headings = ["\nrun", *losses, "\nparameters", *moved, "error/\nlimit", ""]
    print_table(console, headings, [_row(outcome, wide) for outcome in outcomes], wide=wide)
    for name in dict.fromkeys(outcome.setting.task for outcome in outcomes):
        say(console, f"{name}: {TASKS[name].title}", "dim")
    note = _NOTE + _WIDE if wide else _NOTE
    say(console, note.format(first=FIRST, moved="to JAX, to PyTorch" if wide else "moved"), "dim")
    for outcome in outcomes:
        if outcome.error is not None:
            say(console, f"{outcome.setting.id}: {outcome.error}", "red")
        for finding in outcome.findings:
            if not finding.held:
                say(console, f"{outcome.setting.id}: {finding}", "red")
    held = sum(outcome.held for outcome in outcomes)
    verdict = "every run held" if exit_code(outcomes) == 0 else "FAILED"
    say(console, f"{held} of {len(outcomes)} settings held: {verdict}", "bold")


def _row(outcome: TrainingOutcome, wide: bool) -> list[str]:
    name, verdict = outcome.setting.id, "held" if outcome.held else "FAILED"
    if outcome.error is not None:
        return [name, *[""] * (7 if wide else 5), verdict]
    losses = outcome.difference("jax")
    norm, element = outcome.apart["jax"]
    moved = [np.max([*outcome.difference(run), outcome.apart[run][0]]) for run in ("torch to jax", "jax to torch")]
    figures = [losses[:FIRST].max(), losses.max(), norm, *(moved if wide else [np.max(moved)])]
    cells = [f"{figure:.1e}" for figure in figures]
    if wide:
        cells[2] += f" ({element:.1e})"
        limits = (standards.value(f"tier3.{outcome.setting.dtype}{part}") for part in (".first", ""))
        cells.append(" / ".join(f"{limit:.0e}" for limit in limits))
    errors = [(finding.worst, finding.limit) for finding in outcome.findings if finding.check != "learned"]
    return [name, *cells, share_text(standards.share(*np.array(errors).T).max()), verdict]


def as_json(outcomes: Sequence[TrainingOutcome]) -> str:
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
