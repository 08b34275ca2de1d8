"""`maskattn inspect`: what a checkpoint holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maskattn.cli._progress import of_bytes, spinning
from maskattn.cli._source import source_options

if TYPE_CHECKING:
    from rich.console import Console

    from maskattn.checkpoints import Reader, TensorInfo
    from maskattn.config import AttentionConfig

__all__ = ["command"]


@click.command(name="inspect")
@click.argument("path", type=click.Path(path_type=Path))
@source_options
@click.option("--no-read", is_flag=True, help="Read names and shapes only: no search for non-finite values.")
@click.option("--verbose", is_flag=True, help="List every tensor.")
@click.option("--wide", is_flag=True, help="One line for each fact, however long.")
def command(
    path: Path,
    config_path: Path | None,
    family: str | None,
    heads: int | None,
    kv_heads: int | None,
    key: str | None,
    strip_prefix: str,
    no_read: bool,
    verbose: bool,
    wide: bool,
) -> None:
    """List what the checkpoint PATH holds: the form it is in and what shows it, attention layers, types, bytes.

    Every tensor is read once, to find NaN and infinity and to check the hashes that the file may have.

    Exit code 0: read without fault. 1: values that are not finite, or a form that is not known. 2: it cannot be read.
    """
    from rich.console import Console

    from maskattn.cli.convert import refusing

    console = Console(soft_wrap=wide)
    with refusing(), ExitStack() as files:
        with spinning(f"opening {path}"):
            from maskattn import checkpoints
            from maskattn.cli import _conversion
            from maskattn.convert import config_json

            say, reader = _conversion.say, files.enter_context(checkpoints.open(path, key=key))
        config = config_json.beside(reader.path, config_path) or config_json.beside(path)
        total = sum(info.nbytes for info in reader.infos.values())
        say(console, f"{reader.path}: {len(reader)} tensors, {_conversion.size(total)}")
        for note in reader.notes:
            say(console, f"  note: {note}")
        for dtype, count, nbytes in _dtypes(reader.infos):
            say(console, f"  {dtype}: {count} tensors, {_conversion.size(nbytes)}")
        options = {"family": family, "config": config, "num_heads": heads, "num_kv_heads": kv_heads}
        settled = _form(reader, options | {"strip_prefix": strip_prefix}, console)
        _provenance(reader, console)
        if verbose:
            for name, info in reader.infos.items():
                say(console, f"  {name}  {list(info.shape)} {info.dtype}")
        strange = {}
        if not no_read:
            with of_bytes("reading", total) as bar:
                strange = _strange(reader, bar.moved)
    for name, counts in strange.items():
        say(console, f"  not finite: {name}: {counts}")
    if not no_read:
        hashed = ", all equal to their SHA-256" if reader.hashes else ", no hashes to compare with"
        say(console, f"  values: {'all finite' if not strange else f'{len(strange)} tensors not finite'}{hashed}")
    raise SystemExit(1 if strange or not settled else 0)


def _form(reader: Reader, options: dict[str, Any], console: Console) -> bool:
    """Says the form, or why it is not settled; whether it is."""
    from maskattn.cli import _conversion
    from maskattn.convert import plan

    here = {key: value for key, value in reader.provenance.items() if key != "source"}  # where it came from aside
    try:
        with spinning("looking for the form"):
            planned = plan(reader.infos, rest="keep", provenance=here, **options)
    except ValueError as error:
        _conversion.say(console, f"  form: not settled: {error}")
        return False
    whole = not planned.forms[0].attention_only
    _conversion.say(console, f"  form: {planned.source}" if whole else f"  form: attention of layout {planned.source}")
    for line in planned.evidence:
        _conversion.say(console, f"    {line}")
    for line in planned.notes:
        _conversion.say(console, f"    {line}")
    groups: dict[tuple[str, AttentionConfig], list[str]] = {}
    for name, layer in planned.layers.items():
        groups.setdefault((re.sub(r"\d+", "#", name), layer.config), []).append(name)
    for (_, sizes), names in groups.items():
        kv = "" if sizes.num_kv_heads == sizes.num_heads else f", {sizes.num_kv_heads} key/value heads"
        own = [planned.layers[name].own_name for name in (names[0], names[-1])]
        several = f"{own[0]} to {own[1]}, {len(names)} layers" if len(names) > 1 else own[0]
        extras = [part for part in planned.layers[names[0]].tensors if part.split(".")[0] not in _PLAIN]
        beside = f", with {', '.join(extras)}" if extras else ""
        text = f"{sizes.embed_dim} wide, {sizes.num_heads} heads{kv} of {sizes.head_dim}{beside}"
        _conversion.say(console, f"  attention: {several}: {text}")
    for name, why in planned.dropped.items():
        _conversion.say(console, f"  computed: {name} ({why.partition(';')[0]})")
    for name in planned.kept:
        _conversion.say(console, f"  unknown: {name}")
    return whole or not planned.kept


_PLAIN = ("query", "key", "value", "out")


def _provenance(reader: Reader, console: Console) -> None:
    from maskattn.cli import _conversion

    told, depth = reader.provenance, 0
    while told and depth < 10:
        source = told.get("source", {})
        files = ", ".join(f"{name} (SHA-256 {str(file['sha256'])[:12]}...)" for name, file in source["files"].items())
        target = told.get("target", {}).get("form")
        _conversion.say(console, f"  provenance: {source.get('form')} -> {target}, {told.get('dtype')}, from {files}")
        told, depth = source.get("provenance"), depth + 1


def _dtypes(infos: Mapping[str, TensorInfo]) -> list[tuple[str, int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for info in infos.values():
        count, nbytes = sums.get(info.dtype.name, (0, 0))
        sums[info.dtype.name] = count + 1, nbytes + info.nbytes
    return sorted(((name, *both) for name, both in sums.items()), key=lambda row: -row[2])


def _strange(reader: Reader, progress: Callable[[str, int], None]) -> dict[str, str]:
    import numpy as np

    from maskattn.convert.layouts import DTYPES

    strange: dict[str, str] = {}
    for name, array in reader.ahead(list(reader)):
        if array.dtype in DTYPES and not np.isfinite(array).all():
            nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
            strange[name] = f"{nans} NaN, {infinities} infinite of {array.size}"
        progress(name, array.nbytes)
    return strange
