"""`maskattn parity`: prove on this machine that implementations of attention agree. A program of it is a module."""

from __future__ import annotations

import click

from maskattn.cli._commands import Commands
from maskattn.cli.parity._old_flags import renewed

__all__ = ["command"]


class _Parity(Commands):
    """What does not begin with a subcommand are options of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = renewed(args)
            if not args or args[0].startswith("-"):
                args = ["run", *args]
        return super().parse_args(ctx, args)


@click.command(name="parity", cls=_Parity, package="maskattn.cli.parity")
def command() -> None:
    """Prove on this machine that implementations of attention agree.

    Without a command, and with the options of run, this is run.
    """
