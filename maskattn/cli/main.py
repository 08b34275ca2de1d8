"""The `maskattn` command itself: its commands are the modules of this package."""

from __future__ import annotations

import click

from maskattn.cli._commands import Commands

__all__ = ["main"]


@click.command(cls=Commands, package="maskattn.cli", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maskattn", prog_name="maskattn")
def main() -> None:
    """Masked attention, the same in PyTorch and JAX, and the proof of it."""
