"""`maskattn convert`: a checkpoint from one library's names, orders and files to another's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskattn.cli._progress import of_bytes, spinning
from maskattn.cli._source import source_options

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]

DTYPES = {"keep": None, "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class Refused(click.ClickException):
    """Nothing was written."""

    exit_code = 2


class Stopped(click.ClickException):
    """By Ctrl-C: as shells report it."""

    exit_code = 130


class _Size(click.ParamType):
    """Bytes: a number, or one with a unit."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+)\s*([KMG]I?)?B?", str(value).strip().upper())
        if match is None or int(match[1]) == 0:
            self.fail(f"expected a size such as 5GB or 500MiB, got {value!r}", param, ctx)
        return int(match[1]) * _UNITS[match[2] or ""]


@click.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--to", help="Form wanted: a family, or a layout such as flax-linen. Default: what it was made from.")
@click.option("--from", "origin", default="auto", show_default=True, help="Form it is in: a family or a layout.")
@source_options
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="keep", show_default=True, help="Cast floats.")
@click.option("--max-shard-size", type=_Size(), help="Split safetensors into files of this size, for example 5GB.")
@click.option(
    "--rest",
    type=click.Choice(["error", "keep", "drop"]),
    default="error",
    show_default=True,
    help="What happens to tensors that no rule knows.",
)
@click.option("--scan/--no-scan", default=None, help="Stack the tensors of all layers, or not.")
@click.option(
    "--probe",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Arrays query, mask and output of the first layer: settles a layout that names leave open.",
)
@click.option("--clean", is_flag=True, help="Remove what killed runs left in DST's folder.")
@click.option("--force", is_flag=True, help="DST may replace SRC; a converted file is read as another form.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--verify", "check", is_flag=True, help="Read back, undo, compare every tensor, run both models.")
@click.option("--verbose", is_flag=True, help="List every tensor of the plan, not one for all layers.")
@click.option("--wide", is_flag=True, help="One line for each fact, however long.")
def command(
    source: Path,
    target: Path,
    to: str | None,
    origin: str,
    family: str | None,
    config_path: Path | None,
    heads: int | None,
    kv_heads: int | None,
    dtype: str,
    max_shard_size: int | None,
    rest: str,
    scan: bool | None,
    probe: Path | None,
    key: str | None,
    force: bool,
    clean: bool,
    strip_prefix: str,
    dry_run: bool,
    check: bool,
    verbose: bool,
    wide: bool,
) -> None:
    """Convert the checkpoint SRC to DST; their names say the file formats.

    Every tensor is accounted for: one that is missing or unknown is an error that names it. Numbers are moved, not
    changed, but for --dtype and for steps that the plan names. DST appears whole or not at all.

    The model's config.json, and in a model's own folder its tokenizer's files, go with the weights; nothing that is
    there is replaced.

    Exit code 0: done, and verified where asked. 1: written, but --verify found a difference. 2: refused, nothing
    written. 130: stopped by Ctrl-C, nothing written unless said before.
    """
    from rich.console import Console

    console = Console(soft_wrap=wide)
    with refusing(), ExitStack() as files:
        with spinning("loading"):
            from maskattn import checkpoints
            from maskattn.arrays import dtype_named
            from maskattn.cli import _conversion
            from maskattn.convert import carry, config_json, plan, refuse_a_shard, run, verify

            refuse_a_shard(source)
        _leftovers(target, console, clean=clean)
        with spinning(f"opening {source}"):
            reader = files.enter_context(checkpoints.open(source, key=key))
            config = config_json.beside(reader.path, config_path) or config_json.beside(source)
        if probe is not None:
            origin = _conversion.settle(reader, origin, probe, config, heads, kv_heads, console)
        kept = DTYPES[dtype]
        with spinning("planning"):
            planned = plan(
                reader.infos,
                source=origin,
                target=to,
                family=family,
                config=config,
                num_heads=heads,
                num_kv_heads=kv_heads,
                dtype=None if kept is None else dtype_named(kept),
                rest=rest,
                scan=scan,
                provenance=reader.provenance,
                strip_prefix=strip_prefix,
                force=force,
            )
        _conversion.show_plan(planned, reader, console, verbose=verbose, full=dry_run)
        if dry_run:
            return
        options: dict[str, Any] = {"max_shard_size": max_shard_size, "force": force}
        with of_bytes("writing", planned.bytes_written) as bar:
            written = run(planned, reader, target, progress=bar.moved, **options)
        _conversion.say(console, f"wrote {written}")
        for line in carry(reader.path, written, config_path):
            _conversion.say(console, f"  {line}")
        if not check:
            return
        with of_bytes("verifying", planned.bytes_read) as bar, checkpoints.open(written) as back:
            result = verify(planned, reader, back, config=config, progress=bar.moved)
    _conversion.show_verification(result, console)
    raise SystemExit(0 if result.held else 1)


def _leftovers(target: Path, console: Console, *, clean: bool) -> None:
    """Names what killed runs left in the target's folder. What they left of this target goes when it is written."""
    from maskattn import checkpoints
    from maskattn.cli import _conversion

    folder = target.parent
    for place, name in (checkpoints.leftovers(folder, remove=clean) if folder.is_dir() else {}).items():
        own = "goes when this one is written" if name == target.name else "--clean removes it"
        _conversion.say(console, f"{place} was left by a killed run: {'removed' if clean else own}")


@contextmanager
def refusing() -> Iterator[None]:
    """What goes wrong with files and what they hold, as a message; anything else is a fault of this program."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise Refused(f"{error.filename}: {error.strerror}") from error
        raise Refused(str(error)) from error
    except KeyboardInterrupt:
        raise Stopped("stopped") from None
