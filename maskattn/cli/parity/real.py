"""`maskattn parity real`: a real checkpoint and real sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from maskattn.cli._progress import spinning
from maskattn.cli.parity.checkpoint import kernel_option, outputs, prove

__all__ = ["command"]


@click.command(name="real")
@kernel_option
@outputs
def command(kernel: str, json_path: Path | None, html_path: Path | None, wide: bool) -> None:
    """Prove it on a real checkpoint and real sentences.

    They go through all-MiniLM-L6-v2, whole, in both twins and in transformers.

    Exit code 0: every layer held. 1: something differs. 2: nothing was proven.
    """
    with spinning("loading"):
        from maskattn.parity.checkpoint.minilm import checkpoint_folder, tokens
        from maskattn.parity.checkpoint.result import CheckpointResult
        from maskattn.parity.models.whole import verify_whole

    def verify(**told: Any) -> CheckpointResult:
        folder = checkpoint_folder()
        return verify_whole(folder, given=tokens(folder), **told)

    prove(verify, kernel, json_path, html_path, wide)
