"""Commands that are modules of a package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

import click


class _Missing(click.ClickException):
    """A package that is not installed: nothing ran."""

    exit_code = 2


class Commands(click.Group):
    """The modules of `package`, as commands: each holds a `click.Command` named `command`. A module is imported when it
    is called (or listed), so that one command never pays for the imports of another.
    """

    def __init__(self, *given: Any, package: str, **named: Any) -> None:
        super().__init__(*given, **named)
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        path = importlib.import_module(self.package).__path__
        names = (module.name for module in pkgutil.iter_modules(path))
        return sorted(name for name in names if name != "main" and not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:
            if (error.name or "").partition(".")[0].startswith("maskattn"):
                raise  # a fault of this package
            raise _Missing(str(error)) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no command {args[0]!r}; there are: {', '.join(names) or 'none'}.{hint}")
        return super().resolve_command(ctx, args)
