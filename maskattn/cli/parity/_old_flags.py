"""Flags that are subcommands now: each works for one version more, and says what to write instead."""

from __future__ import annotations

import shlex

import click

_FLAGS = ("--training", "--faults", "--real", "--checkpoint", "--list")


def renewed(args: list[str]) -> list[str]:
    """The arguments with a flag of old as the subcommand that it is now, after a warning; others as they are."""
    flag = next((flag for flag in _FLAGS if any(arg.partition("=")[0] == flag for arg in args)), None)
    if flag is None:
        return args
    at = next(i for i, arg in enumerate(args) if arg.partition("=")[0] == flag)
    rest, moved = [*args[:at], *args[at + 1 :]], [flag[2:]]
    if flag == "--checkpoint":
        _, equals, path = args[at].partition("=")
        moved += [path] if equals else [rest.pop(at)] if rest[at:] else []
    if flag == "--training" and "--faults" in rest:
        rest.remove("--faults")
        moved = ["faults", "--training"]
    new = [*moved, *rest]
    click.echo(
        f"DeprecationWarning: write `maskattn parity {shlex.join(new)}`; {flag} goes with the next version", err=True
    )
    return new
