"""`maskattn parity real`: a real checkpoint and real sentences."""

from __future__ import annotations

from pathlib import Path

import click

from maskattn.cli.parity import _options
from maskattn.cli.parity.checkpoint import kernel_option, prove

__all__ = ["command"]


@click.command(name="real")
@kernel_option
@_options.json
@_options.wide
def command(kernel: str, json_path: Path | None, wide: bool) -> None:
    """Prove it on a real checkpoint and real sentences.

    They go through all-MiniLM-L6-v2, and Hugging Face's own model judges each attention layer.

    Exit code 0: every layer held. 1: something differs. 2: nothing was proven.
    """
    from maskattn.parity.checkpoint.minilm import verify_minilm

    prove(verify_minilm, kernel, json_path, wide)
