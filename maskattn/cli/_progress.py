"""What commands show while they work: on a terminal, from their first second on, and gone when all is done.

It goes to stderr, so that what a command prints can be piped and parsed while it is watched, and nothing of it is
written where stderr is no terminal.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

__all__ = ["Bar", "counting", "of_bytes", "spinning"]


class Bar:
    """A line with the time taken and what is being done, and a bar where it is known how much there is. Made by
    `counting`, `of_bytes` and `spinning`; it is shown within its `with`, in which a command prints nothing.
    """

    def __init__(self, doing: str, total: float | None, *columns: ProgressColumn) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        # A name is cut to what the line has room for, and [x] in it is no markup.
        name = TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        )
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            *columns,
            name,
            console=console,
            transient=True,
            expand=True,
            redirect_stdout=False,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(doing, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def doing(self, what: str) -> None:
        """Say what is being done from here on."""
        self._progress.update(self._task, description=what)

    def expect(self, total: float) -> None:
        """Say how much there is: steps, or bytes."""
        self._progress.update(self._task, total=total)

    def advance(self, count: float = 1) -> None:
        """Say that so much more is done."""
        self._progress.advance(self._task, count)

    def moved(self, name: str, count: int) -> None:
        """A callback of what moves tensors: one of `count` bytes is done; with 0, `name` is what is being done."""
        if count:
            self.advance(count)
        else:
            self.doing(name)


def spinning(doing: str) -> Bar:
    """Where nobody knows how much is to come."""
    return Bar(doing, None)


def counting(doing: str) -> Bar:
    """Steps: how many of how many, once `expect` has said so."""
    from rich.progress import BarColumn, MofNCompleteColumn

    return Bar(doing, None, BarColumn(20), MofNCompleteColumn())


def of_bytes(doing: str, total: int) -> Bar:
    """Bytes: how many of how many, how fast, and the time that is left."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    return Bar(doing, total, BarColumn(20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
