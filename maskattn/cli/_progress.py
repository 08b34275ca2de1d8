"""The progress bar of commands that count what they have done."""

from __future__ import annotations

from typing import Any


def counting(console: Any) -> Any:
    """A bar with a count, the time taken and a description, gone when it is done: a `rich.progress.Progress`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)
