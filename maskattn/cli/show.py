"""`maskattn show`: see a mask, or a corruption scheme."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from maskattn.cli import _terminal
from maskattn.cli._progress import spinning

if TYPE_CHECKING:
    from maskattn.masks import Mask
    from maskattn.show import Statistics

__all__ = ["command"]

P = ParamSpec("P")
T = TypeVar("T")


class _Indices(click.ParamType):
    """b,h,q,k as four ints."""

    name = "b,h,q,k"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 4 or min(numbers) < 0:
            self.fail(f"expected four numbers b,h,q,k that are not negative, got {value!r}", param, ctx)
        return numbers


@click.command(name="show")
@click.argument("text", metavar="[MASK]", required=False)
@click.option("--q", "q_len", type=click.IntRange(min=0), help="Queries. Default: from the data, else as many as keys.")
@click.option(
    "--kv", "kv_len", type=click.IntRange(min=0), help="Keys. Default: from the data, else as many as queries."
)
@click.option("--batch", type=click.IntRange(min=0), help="Batch size. Default: from the data, else 1.")
@click.option("--heads", type=click.IntRange(min=0), help="Heads. Default: from the data, else 1.")
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="The batch row to draw.")
@click.option("--head", type=click.IntRange(min=0), default=0, show_default=True, help="The head to draw.")
@click.option("--tile", type=click.IntRange(min=1), default=128, show_default=True, help="Side of a kernel's tile.")
@click.option("--why", type=_Indices(), metavar="B,H,Q,K", help="Say why this pair may attend or not.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture here.")
@click.option("--json", "as_json", is_flag=True, help="Print the mask as JSON, and nothing else.")
@click.option("--ascii", "ascii_only", is_flag=True, help="Draw with ASCII characters.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of a corruption scheme.")
@click.option("--gallery", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture of every mask here.")
def command(
    text: str | None,
    q_len: int | None,
    kv_len: int | None,
    batch: int | None,
    heads: int | None,
    row: int,
    head: int,
    tile: int,
    why: tuple[int, int, int, int] | None,
    png: Path | None,
    as_json: bool,
    ascii_only: bool,
    seed: int,
    gallery: Path | None,
) -> None:
    """Draw MASK, give its figures and say what looks wrong.

    MASK is written as in Python or shorter ("causal & window(255, 0)"), a file that holds a mask as JSON (@mask.json),
    or a recipe: with arguments ("recipes.mistral(4096)"), or its example (recipes.longformer). Or it is a corruption
    scheme of masked pre-training: mae, mlm, "simmim(ratio=0.5)", or corruption for all; --seed and --row choose a draw.
    """
    if gallery is not None:
        from maskattn.cli._gallery import write_gallery

        with spinning("drawing every mask"):
            count = _or_say(write_gallery, gallery)
        click.echo(f"{gallery}: {count} masks, {gallery.stat().st_size // 1000} kB")
    if text is None:
        if gallery is None:
            raise click.UsageError("give a MASK to show, or --gallery FILE")
        return
    from maskattn.cli import _schemes

    if _schemes.named(text):
        _or_say(_schemes.show, _or_say(_schemes.parse, text), seed, row, ascii_only or not _can_draw(), png)
        return
    mask, sizes = _load(text)
    q_len, kv_len = _lengths(mask, q_len if q_len is not None else sizes[0], kv_len if kv_len is not None else sizes[1])
    if as_json:
        click.echo(_or_say(mask.to_json))
        return
    settled = _or_say(mask.settle, q_len, kv_len, batch, heads)
    for name, index, size in (("--row", row, settled["batch"]), ("--head", head, settled["heads"])):
        if index and index >= size:
            raise click.UsageError(f"{name} {index} is outside the {size} there are")
    if why is not None:
        _terminal.echo(_or_say(mask.why, *why))
        return
    _print(mask, settled, row, head, tile, ascii_only or not _can_draw())
    if png is not None:
        from maskattn.show.picture import write_png

        with spinning("drawing"):
            _or_say(write_png, mask, png, q_len, kv_len, batch=row, head=head)
        click.echo(f"\npicture: {png}")


def _print(mask: Mask, sizes: dict[str, int], row: int, head: int, tile: int, ascii_only: bool) -> None:
    from maskattn import masks
    from maskattn.show import drawing, statistics

    q_len, kv_len, batch, heads = sizes["q_len"], sizes["kv_len"], sizes["batch"], sizes["heads"]
    with spinning("counting pairs and tiles"):
        figures = statistics(mask, q_len, kv_len, batch, heads, tile=(tile, tile))
    title = repr(mask)
    space = _terminal.size()
    _terminal.echo(title if len(title) <= 400 else f"{title[:397]}...")
    click.echo(f"{q_len:,} queries x {kv_len:,} keys, batch {batch}, {heads} head{'s' * (heads != 1)}")
    where = [f"row {row}"] * ("b" in mask.depends and batch > 1) + [f"head {head}"] * (
        "h" in mask.depends and heads > 1
    )
    click.echo(f"\n{', '.join(where)}:" if where else "")
    if batch and heads:
        size = {"width": space.columns, "height": max(16, min(44, space.lines - 12))}
        click.echo(drawing(mask, q_len, kv_len, row, head, ascii_only=ascii_only, **size))
    for name, value in _figures(figures):
        _terminal.echo(f"{name:<12}{value}", 12)
    for warning in masks.lint(mask, q_len, kv_len, batch, heads):
        _terminal.echo(f"{'warning':<12}{warning}", 12)


def _figures(s: Statistics) -> list[tuple[str, str]]:
    if not s.pairs:
        return [("density", "there are no pairs")]
    about = "" if s.exact else "about "
    rows = f"{s.empty_rows:,} of {s.rows:,} may attend to nothing"
    if s.unknown_rows:
        rows += f" ({s.unknown_rows:,} more were not settled)"
    side = " x ".join(str(n) for n in s.tile)
    shares = (s.skipped_tiles, s.full_tiles, s.tiles - s.skipped_tiles - s.full_tiles)
    skipped, full, mixed = (_percent(count, s.tiles) for count in shares)
    return [
        (
            "density",
            f"{about}{_percent(s.allowed, s.pairs)} ({about}{s.allowed:,} of {s.pairs:,} pairs)",
        ),
        ("empty rows", rows),
        ("tiles", f"{s.tiles:,} of {side}: {skipped} skipped, {full} without mask, {mixed} mixed"),
    ]


def _percent(part: int, whole: int) -> str:
    """A share that says 0 % and 100 % only where it is."""
    share = 100 * part / whole
    if part in (0, whole):
        return f"{share:.0f} %"
    return f"{min(max(share, 0.01), 99.99):.2f} %"


def _load(text: str) -> tuple[Mask, tuple[int | None, int | None]]:
    """The mask, and the lengths it comes with where it is a recipe."""
    from maskattn import masks

    if text.startswith("@"):
        try:
            return _or_say(masks.from_json, Path(text[1:]).read_bytes()), (None, None)
        except OSError as error:
            raise click.ClickException(f"cannot read {text[1:]}: {error.strerror}") from error
    name = text.strip().removeprefix("recipes.")
    if name != text.strip() and name.isidentifier():
        from maskattn import recipes

        if name in recipes.EXAMPLES:
            mask, *lengths = recipes.EXAMPLES[name]
            return mask, (lengths[0], lengths[1])
        raise click.ClickException(f"there is no recipe {name!r}; there are {', '.join(recipes.EXAMPLES)}")
    return _or_say(masks.parse, text), (None, None)


def _lengths(mask: Mask, q_len: int | None, kv_len: int | None) -> tuple[int, int]:
    """The lengths asked for, else those of the data, else one like the other."""
    fixed = _or_say(mask.sizes)
    q_len = fixed.get("q_len") if q_len is None else q_len
    kv_len = fixed.get("kv_len") if kv_len is None else kv_len
    length = kv_len if q_len is None else q_len
    if length is None:
        raise click.UsageError("the mask fixes no lengths: give --q, --kv or both")
    return length if q_len is None else q_len, length if kv_len is None else kv_len


def _or_say(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call it; what it refuses is said without a trace."""
    try:
        return function(*arguments, **named)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _can_draw() -> bool:
    try:
        "█▄░┌".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
