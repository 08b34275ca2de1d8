"""`maskattn parity list`: the cases of a run."""

from __future__ import annotations

import click

from maskattn.cli.parity import _options

__all__ = ["command"]


@click.command(name="list")
@_options.cases
def command(pattern: str | None) -> None:
    """List the cases and run none."""
    from maskattn.parity.attention.cases import select

    for case in select(pattern):
        click.echo(case.id)
