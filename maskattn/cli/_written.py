"""Files that commands write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class NewFile(click.Path):
    """A file to write, in a folder that is there: asked before anything runs."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        folder = Path(value).absolute().parent
        if not folder.is_dir():
            raise click.UsageError(f"cannot write {value}: there is no folder {folder}", ctx)
        return super().convert(value, param, ctx)


@contextmanager
def writing() -> Iterator[None]:
    """What goes wrong with a file, as a message."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from error


json = click.option("--json", "json_path", type=NewFile(), help="Write the results here.")
wide = click.option("--wide", is_flag=True, help="All columns, in lines as long as they need.")
