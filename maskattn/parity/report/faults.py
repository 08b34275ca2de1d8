"""Planted faults and what caught them, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from maskattn.parity.report.table import print_table, say


def render(
    title: str,
    described: Mapping[str, str],
    seen: Mapping[str, Sequence[Sequence[str]]],
    console: Console,
    *,
    wide: bool = False,
    unplanted: Sequence[str] = (),
) -> None:
    """A line per fault.

    Args:
        described: fault -> what is done wrong.
        seen: twin -> for each fault the checks that caught it there, none where it was missed.
        unplanted: checks that failed with nothing planted.
    """

    def cell(checks: Sequence[str]) -> str:
        return (", ".join(checks) if wide else "caught") if checks else "MISSED"

    caught = zip(*seen.values(), strict=True)
    rows = [(*fault, *map(cell, checks)) for fault, checks in zip(described.items(), caught, strict=True)]
    say(console, title)
    print_table(console, ("fault", "what is done wrong", *seen), rows, wide=wide, words=2)
    for check in unplanted:
        say(console, f"seen with nothing planted: {check}", "bold red")
    missed = sum(not checks for caught in seen.values() for checks in caught)
    say(console, f"{len(described)} faults in {len(seen)} twins, {missed} missed", "bold")
