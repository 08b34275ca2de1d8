"""The options by which every command that reads a checkpoint is told what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

__all__ = ["source_options"]

F = TypeVar("F", bound=Callable[..., object])

_OPTIONS = (
    click.option("--family", metavar="NAME|FILE.toml", help="A family of your own, or which one where several fit."),
    click.option("--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), help="Its config.json."),
    click.option("--heads", type=click.IntRange(min=1), help="Attention heads, where no config.json says."),
    click.option("--kv-heads", type=click.IntRange(min=1), help="Key/value heads, where fewer."),
    click.option("--key", help="Which state of a training file: model_ema, or ema/params. Default: the model's."),
    click.option(
        "--strip-prefix",
        metavar="[PREFIX]",
        is_flag=False,
        flag_value="auto",
        default="",
        help="Take off what stands before the names, such as module.; alone at the end: what is found there.",
    ),
)


def source_options(command: F) -> F:
    """Gives ``command`` the arguments ``family``, ``config_path``, ``heads``, ``kv_heads``, ``key`` and
    ``strip_prefix``.
    """
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
