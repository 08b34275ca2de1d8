"""`maskattn parity checkpoint`: the attention layers of a checkpoint in both twins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from maskattn.cli.parity import _options

__all__ = ["command", "kernel_option", "prove"]

kernel_option = click.option(
    "--kernel", default="reference", show_default=True, help="Judged beside exact, in which every bit must be equal."
)


@click.command(name="checkpoint")
@click.argument("path", metavar="PATH")
@click.option("--against", metavar="PATH", help="A second checkpoint that must hold the same tensors.")
@click.option("--layout", default="auto", show_default=True, help="Its layout.")
@click.option("--heads", type=click.IntRange(min=1), help="Its attention heads, where no config.json says.")
@click.option("--kv-heads", type=click.IntRange(min=1), help="Its key/value heads, where fewer.")
@kernel_option
@_options.json
@_options.wide
def command(
    path: str,
    against: str | None,
    layout: str,
    heads: int | None,
    kv_heads: int | None,
    kernel: str,
    json_path: Path | None,
    wide: bool,
) -> None:
    """Prove it on the attention layers of a checkpoint.

    PATH is of a known layout; its inputs are random, and a float64 oracle judges.

    Exit code 0: every layer held. 1: something differs. 2: nothing was proven.
    """
    from maskattn.parity.checkpoint.verify import verify_checkpoint

    given: dict[str, Any] = {"layout": layout, "num_heads": heads, "num_kv_heads": kv_heads, "against": against}
    prove(lambda **named: verify_checkpoint(path, **given, **named), kernel, json_path, wide)


def prove(verify: Callable[..., Any], kernel: str, json_path: Path | None, wide: bool) -> None:
    """Runs `verify(kernel=..., progress=...)`, prints what it gives, and ends with the exit code."""
    from rich.console import Console

    from maskattn.cli._progress import spinning
    from maskattn.parity.report import checkpoint as report
    from maskattn.parity.report.table import say

    # exact is always judged too
    kernel, console = "reference" if kernel == "exact" else _options.known(kernel), Console()
    try:
        with spinning(console) as bar:
            task = bar.add_task("loading")
            result = verify(kernel=kernel, progress=lambda layer: bar.update(task, description=layer))
    except (ImportError, OSError, ValueError) as error:
        say(console, f"nothing was proven: {error}", "bold red")
        raise SystemExit(2) from error
    report.render(result, console, wide=wide)
    if json_path is not None:
        with _options.writing():
            json_path.write_text(report.as_json(result))
    raise SystemExit(result.exit_code)
