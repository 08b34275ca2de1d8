"""Training runs as a table, a line per setting, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from maskattn.parity.report.environment import environment
from maskattn.parity.report.table import print_table, say, share
from maskattn.parity.training.run import FIRST, Outcome, exit_code
from maskattn.parity.training.tasks import TASKS
from maskattn.standards import value

_NOTE = (
    f"loss: the largest |JAX - PyTorch| / PyTorch over the first {FIRST} steps, and over all. parameters: at the end, "
    "of a tensor by its norm; key biases left out. to JAX, to PyTorch: half way a run moves over, with parameters, "
    "moments, step count and key; its losses and parameters against the run that stayed. error/limit: the largest as a "
    "share of its limit"
)
_WIDE = f". In brackets: of an element. limit: of the first {FIRST} losses / of all else"


def render(outcomes: Sequence[Outcome], console: Console, *, steps: int, wide: bool = False) -> None:
    """The table, and every failure."""
    kernels = ", ".join(sorted({outcome.setting.kernel for outcome in outcomes}))
    say(console, f"training, {steps} steps, dropout on, kernel {kernels}: PyTorch and JAX")
    losses = (f"loss\n{FIRST} steps", f"\n{steps} steps")
    headings = ["\nrun", *losses, "para-\nmeters", "to\nJAX", "to\nPyTorch", *["\nlimit"] * wide, "error/\nlimit", ""]
    print_table(console, headings, [_row(outcome, wide) for outcome in outcomes], wide=wide)
    for name in dict.fromkeys(outcome.setting.task for outcome in outcomes):
        say(console, f"{name}: {TASKS[name].title}", "dim")
    say(console, _NOTE + (_WIDE if wide else "") + ".", "dim")
    for outcome in outcomes:
        if outcome.error is not None:
            say(console, f"{outcome.setting.id}: {outcome.error}", "red")
        for finding in outcome.findings:
            if not finding.held:
                say(console, f"{outcome.setting.id}: {finding}", "red")
    held = sum(outcome.held for outcome in outcomes)
    verdict = "every run held" if exit_code(outcomes) == 0 else "FAILED"
    say(console, f"{held} of {len(outcomes)} settings held: {verdict}", "bold")


def _row(outcome: Outcome, wide: bool) -> list[str]:
    run, verdict = outcome.setting.id, "held" if outcome.held else "FAILED"
    if outcome.error is not None:
        return [run, *[""] * (7 if wide else 6), verdict]
    losses = outcome.difference("jax")
    norm, element = outcome.apart["jax"]
    crossed = (max(outcome.difference(name).max(), outcome.apart[name][0]) for name in ("torch to jax", "jax to torch"))
    figures = [losses[:FIRST].max(), losses.max(), norm, *crossed]
    cells = [f"{figure:.1e}" for figure in figures]
    if wide:
        cells[2] += f" ({element:.1e})"
        limits = (value(f"tier3.{outcome.setting.dtype}{part}") for part in (".first", ""))
        cells.append(" / ".join(f"{limit:.0e}" for limit in limits))
    worst = max(finding.worst / finding.limit for finding in outcome.findings if finding.check != "learned")
    return [run, *cells, share(worst), verdict]


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
