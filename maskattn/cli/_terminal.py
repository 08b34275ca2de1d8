"""Lines that fit the terminal; in a pipe there are 80 columns."""

from __future__ import annotations

import os
import shutil

import click

from maskattn._text import wrapped


def size() -> os.terminal_size:
    """Columns and lines."""
    return shutil.get_terminal_size((80, 50))


def echo(text: str, indent: int = 2) -> None:
    """Print the text; see `wrapped`."""
    click.echo(wrapped(text, size().columns, indent))
