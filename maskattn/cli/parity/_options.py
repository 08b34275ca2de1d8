"""What several of the programs take, and what they do alike."""

from __future__ import annotations

import importlib
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


def known(kernel: str) -> str:
    """The kernel. The twins' kernels are their own to name; either twin can be asked, and whichever is installed is.

    Raises:
        click.UsageError: there is no such kernel.
    """
    for twin in ("maskattn_torch", "maskattn_jax"):
        try:
            names = importlib.import_module(f"{twin}.kernels").KERNELS
        except ImportError:
            continue
        if kernel not in names:
            raise click.UsageError(f"--kernel must be one of {', '.join(names)}, got {kernel!r}")
        break
    return kernel


@contextmanager
def writing() -> Iterator[None]:
    """What goes wrong with a file, as a message."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from error


cases = click.option("--cases", "pattern", metavar="GLOB", help="Only those whose id matches, or contains, this.")
json = click.option("--json", "json_path", type=NewFile(), help="Write the results here.")
wide = click.option("--wide", is_flag=True, help="All columns, in lines as long as they need.")
