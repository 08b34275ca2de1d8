"""The `maskattn` command itself.

A command is a module of this package, `maskattn/cli/<name>.py`, that holds a `click.Command` named `command`. It is
imported when it is called (or listed), so that one command never pays for the imports of another.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

import click

import maskattn.cli

__all__ = ["main"]


class _Commands(click.Group):
    """The modules of `maskattn.cli`, as commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(maskattn.cli.__path__))
        return sorted(name for name in names if name != "main" and not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"maskattn.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no command {args[0]!r}; there are: {', '.join(names) or 'none'}.{hint}")
        return super().resolve_command(ctx, args)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="maskattn", prog_name="maskattn")
def main() -> None:
    """Masked attention, the same in PyTorch and JAX, and the proof of it."""


if __name__ == "__main__":
    main(prog_name="maskattn")
