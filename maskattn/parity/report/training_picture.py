"""The losses of both frameworks and their difference, as a PNG picture. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskattn.parity.training.run import FIRST, TrainingOutcome
from maskattn.parity.training.tasks import OPTIMIZERS, TASKS
from maskattn.show.picture import INK, LINE, TEXT, new_figure
from maskattn.standards import value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: One colour for each optimizer; a line style for each dtype.
COLOURS = dict(zip(OPTIMIZERS, (INK, "#a8470b"), strict=True))
STYLES = {"float64": "-", "float32": (0, (1, 1))}
_FLOOR = 1e-17  # where a difference of 0 is drawn


def write_png(outcomes: Sequence[TrainingOutcome], path: str | os.PathLike[str]) -> None:
    """A row per task: on the left the loss of each optimizer, in PyTorch a wide pale line, in JAX a thin dark one; on
    the right |JAX - PyTorch| / PyTorch at each step, with the limits.

    Raises:
        ImportError: matplotlib is missing. ValueError: there is nothing to draw.
    """
    drawn = [outcome for outcome in outcomes if outcome.error is None]
    tasks = list(dict.fromkeys(outcome.setting.task for outcome in drawn))
    if not tasks:
        raise ValueError("a picture needs runs, and none was completed")
    figure = new_figure(9.6, 0.5 + 2.4 * len(tasks))
    grid = figure.subplots(len(tasks), 2, squeeze=False, width_ratios=(1, 1.25))
    for name, (left, right) in zip(tasks, grid, strict=True):
        runs = [outcome for outcome in drawn if outcome.setting.task == name]
        left.set_title(f"{name}: {TASKS[name].title}", fontsize=9, color=TEXT, loc="left")
        right.set_title("|JAX - PyTorch| / PyTorch", fontsize=9, color=TEXT, loc="left")
        _losses(left, runs)
        _differences(right, runs)
        for axes in (left, right):
            axes.tick_params(labelsize=7, colors=TEXT)
            axes.grid(color=LINE, linewidth=0.4)
            for spine in axes.spines.values():
                spine.set_color(LINE)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8, color=TEXT)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _losses(axes: Axes, runs: Sequence[TrainingOutcome]) -> None:
    """Of the widest dtype that was run: the others lie on it."""
    for optimizer, colour in COLOURS.items():
        outcome = next((run for run in runs if run.setting.optimizer == optimizer), None)
        if outcome is None:
            continue
        steps = np.arange(1, len(outcome.curves["torch"]) + 1)
        axes.plot(steps, outcome.curves["torch"], color=colour, linewidth=4, alpha=0.3, label=f"{optimizer}, PyTorch")
        axes.plot(steps, outcome.curves["jax"], color=colour, linewidth=0.9, label=f"{optimizer}, JAX")
    axes.legend(fontsize=6.5, frameon=False, ncols=2, labelcolor=TEXT)
    axes.set_ylabel("loss", fontsize=8, color=TEXT)


def _differences(axes: Axes, runs: Sequence[TrainingOutcome]) -> None:
    for run in runs:
        setting, apart = run.setting, run.difference("jax")
        steps = np.arange(1, len(apart) + 1)
        label = f"{setting.optimizer}, {setting.dtype}"
        style, colour = STYLES[setting.dtype], COLOURS[setting.optimizer]
        axes.plot(steps, np.maximum(apart, _FLOOR), color=colour, linestyle=style, linewidth=1, label=label)
    for dtype in dict.fromkeys(run.setting.dtype for run in runs):
        last = max(len(run.curves["jax"]) for run in runs)
        first, rest = value(f"tier3.{dtype}.first"), value(f"tier3.{dtype}")
        axes.plot([1, FIRST, FIRST, last], [first, first, rest, rest], color=TEXT, linewidth=0.8)
        axes.text(last, rest * 1.6, f"limit, {dtype}", fontsize=6.5, color=TEXT, ha="right")
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR / 2, 1e-4)
    axes.legend(fontsize=6.5, frameon=False, ncols=2, labelcolor=TEXT, loc="center right")
