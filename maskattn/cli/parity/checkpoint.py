"""`maskattn parity checkpoint`: a checkpoint in both twins, whole where its model is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from maskattn.cli._progress import spinning
from maskattn.cli.parity import _options

__all__ = ["command", "kernel_option", "outputs", "prove"]

kernel_option = click.option(
    "--kernel", default="reference", show_default=True, help="Of the twins; with exact every bit must be equal."
)


def outputs(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say where results go."""
    page = click.option("--html", "html_path", type=_options.NewFile(), help="Write the results here as a page.")
    return _options.json(page(_options.wide(function)))


@click.command(name="checkpoint")
@click.argument("path", metavar="PATH")
@click.option("--against", metavar="PATH", help="A second checkpoint that must hold the same tensors.")
@click.option("--layout", help="Its layout: runs its attention layers alone.")
@click.option("--heads", type=click.IntRange(min=1), help="Its attention heads, where no config.json says: the same.")
@click.option("--kv-heads", type=click.IntRange(min=1), help="Its key/value heads, where fewer: the same.")
@kernel_option
@outputs
def command(
    path: str,
    against: str | None,
    layout: str | None,
    heads: int | None,
    kv_heads: int | None,
    kernel: str,
    json_path: Path | None,
    html_path: Path | None,
    wide: bool,
) -> None:
    """Prove it on a checkpoint.

    PATH is a folder as Hugging Face has them, whatever `maskattn convert` wrote, or a .gguf file. The whole model runs
    in both twins on inputs of its own, and is compared layer by layer with transformers' own run, where it is installed
    and has such a model; else JAX is with PyTorch.

    Where no table describes the model, its attention layers alone run, on random inputs, and a float64 oracle judges.

    Exit code 0: every layer held. 1: something differs. 2: nothing was proven.
    """
    alone: dict[str, Any] = {"layout": layout, "num_heads": heads, "num_kv_heads": kv_heads}
    reason = "its layout or heads are given" if any(alone.values()) else None
    try:
        with spinning("loading"):
            from maskattn.parity.checkpoint.verify import verify_checkpoint
            from maskattn.parity.models.whole import unknown, verify_whole

            reason = reason or unknown(path)
    except (ImportError, OSError) as error:
        raise _nothing(error) from error
    if reason is None:
        prove(lambda **told: verify_whole(path, against=against, **told), kernel, json_path, html_path, wide)
    click.echo(f"attention layers alone are run: {reason}")
    alone["layout"] = layout or "auto"
    kernel = "reference" if kernel == "exact" else kernel  # exact is always judged too
    prove(lambda **told: verify_checkpoint(path, against=against, **alone, **told), kernel, json_path, html_path, wide)


def prove(verify: Callable[..., Any], kernel: str, json_path: Path | None, html_path: Path | None, wide: bool) -> None:
    """Runs `verify(kernel=..., progress=...)`, prints what it gives, and ends with the exit code."""
    from rich.console import Console

    from maskattn.parity.report import checkpoint as report
    from maskattn.parity.report.page import write_text

    console = Console()
    try:
        with spinning("loading") as bar:
            kernel = _options.known(kernel)
            result = verify(kernel=kernel, progress=bar.doing)
    except (ImportError, OSError, ValueError) as error:
        raise _nothing(error) from error
    report.render(result, console, wide=wide)
    with _options.writing():
        if json_path is not None:
            json_path.write_text(report.as_json(result))
        if html_path is not None:
            write_text(report.as_html(result), html_path)
    raise SystemExit(result.exit_code)


def _nothing(error: Exception) -> SystemExit:
    from rich.console import Console

    from maskattn.parity.report.table import say

    say(Console(), f"nothing was proven: {error}", "bold red")
    return SystemExit(2)
