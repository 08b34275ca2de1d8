"""`maskattn show` for corruption schemes."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import click

from maskattn.cli import _terminal
from maskattn.corruption import Scheme
from maskattn.corruption.examples import EXAMPLES

ALL = "corruption"


def named(text: str) -> bool:
    """Whether a text begins with the name of a scheme, or asks for all of them."""
    return re.split(r"\W", text.strip(), maxsplit=1)[0] in {ALL, *EXAMPLES}


def parse(text: str) -> list[Scheme]:
    """mae, or mae(ratio=0.9), which changes its example; corruption: all examples.

    Raises:
        ValueError, TypeError: what is in the brackets is no list of keywords, or does not make such a scheme.
    """
    if text.strip() == ALL:
        return list(EXAMPLES.values())
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return [EXAMPLES[call.id]]
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError):
        raise ValueError(f"expected a scheme as mae or mae(ratio=0.9), got {text!r}") from None
    example = EXAMPLES[call.func.id]
    known = [field.name for field in dataclasses.fields(example)]
    for name in named:
        if name not in known:
            raise ValueError(f"{call.func.id} has no {name!r}; it has {', '.join(known)}")
    return [dataclasses.replace(example, **named)]


def show(schemes: list[Scheme], seed: int, row: int, ascii_only: bool, png: Path | None) -> None:
    """Print what each scheme draws, and write the picture where one is asked for."""
    from maskattn.show.schemes import draw, terminal

    for i, scheme in enumerate(schemes):
        drawing = draw(scheme, seed, row)
        _terminal.echo(f"{'' if i == 0 else chr(10)}{scheme!r}")
        click.echo(f"seed {seed}, row {row}\n")
        click.echo(terminal(drawing, _terminal.size().columns, ascii_only))
        for name, value in drawing.figures:
            _terminal.echo(f"{name:<12}{value}", 12)
    if png is not None:
        from maskattn.show.scheme_picture import write_png

        write_png(schemes, png, seed)
        click.echo(f"\npicture: {png}")
