"""What the conversion commands print, and the question a probe settles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from maskattn import checkpoints
from maskattn._text import wrapped
from maskattn.checkpoints import Reader
from maskattn.convert import Move, Plan, Verification, config_json, layouts, probe as probe_layer

if TYPE_CHECKING:
    from rich.console import Console

_LISTED = 20


def show_plan(plan: Plan, reader: Reader, console: Console, *, verbose: bool, full: bool) -> None:
    """The plan: every tensor where ``full``, otherwise what is found and what is said of it."""
    say(console, f"{reader.path}: {plan.source} -> {plan.target}")
    for line in (*plan.evidence, *reader.notes):
        say(console, f"  found: {line}")
    for line in plan.notes:
        say(console, f"  {line}" if line.startswith("warning") else f"  note: {line}")
    if full:
        _moves(plan, console, verbose)
    for step in plan.steps:
        say(console, f"  step: {step}")
    for names, verb in ((dict(plan.dropped), "left out"), (dict.fromkeys(plan.kept, "no rule knows it"), "kept")):
        for name, why in list(names.items())[: None if verbose else _LISTED]:
            say(console, f"  {verb}: {name} ({why})")
        if len(names) > _LISTED and not verbose:
            say(console, f"  {verb}: {len(names) - _LISTED} more (--verbose lists them)")
    cast = "" if plan.dtype is None else f", floating-point tensors cast to {plan.dtype}"
    total = f"{len(plan.moves)} tensors, {size(plan.bytes_read)} read, {size(plan.bytes_written)} written{cast}"
    say(console, f"  {total}; peak memory about {size(plan.peak_memory)}")
    say(console, "  undone by converting back: " + ("byte for byte" if plan.exact else "not exactly, see above"))


def _moves(plan: Plan, console: Console, verbose: bool) -> None:
    groups: dict[tuple[object, ...], list[Move]] = {}
    for move in plan.moves:
        alike = (_plain(move.target), move.operation, move.array.shape, move.array.dtype)
        groups.setdefault((move.target,) if verbose else alike, []).append(move)
    for moves in groups.values():
        first, times = moves[0], f", {len(moves)} times" if len(moves) > 1 else ""
        total = size(sum(move.array.nbytes for move in moves))
        shape = "[" + ", ".join(map(str, first.array.shape)) + "]"
        say(console, f"  {_several(first.array.sources)} -> {first.target}")
        say(console, f"      {first.operation}; {shape} {first.array.dtype}, {total}{times}")


def _several(names: tuple[str, ...]) -> str:
    more = f" + {len(names) - 3} more" if len(names) > 3 else ""
    return (" + ".join(names[:3]) + more) or "nothing"


def show_verification(result: Verification, console: Console) -> None:
    """What was compared, and the errors of each layer, or of attention, beside their limits."""
    for name, how in result.different.items():
        say(console, f"  differs: {name}: {how}")
    say(console, f"verified: {len(result.same)} tensors came back byte for byte, {len(result.different)} did not")
    for name, error in result.near.items():
        say(console, f"  changed by a step: {name}, largest difference {error:.3g} of the largest number")
    if result.absent:
        say(console, f"  not carried over: {', '.join(result.absent[:_LISTED])}")
    for note in result.notes:
        say(console, f"  {note}")
    if result.layers:
        say(console, "the whole model, PyTorch on the source's weights and JAX on the file's:")
    longest = max((len(each.name) for each in result.layers), default=0)
    for each in result.layers:
        figures = f"error {each.error:.2e}  limit {each.limit:.2e}  {'held' if each.held else 'FAILED'}"
        say(console, f"  {each.name:{longest}}  {figures}")
    first = next((each for each in result.layers if not each.held), None)
    if first is not None:
        say(console, f"differs first at {first.name}: error {first.error:.2e}, limit {first.limit:.2e}")
    layer = None
    for ran in result.ran:
        if ran.layer != layer:
            layer = ran.layer
            say(console, f"attention of {layer}: {ran.sizes}")
        figures = f"error {ran.error:.2e}  limit {ran.limit:.2e}  {'held' if ran.held else 'FAILED'}"
        say(console, f"  {ran.mask:8} {ran.twin:6} {ran.weights:12} weights  {figures}")


def settle(
    reader: Reader,
    origin: str,
    probe: Path,
    config: Mapping[str, object],
    heads: int | None,
    kv_heads: int | None,
    console: Console,
) -> str:
    """The form named, or the only layout under which the first layer computes the output in the file ``probe``."""
    from maskattn.convert import families

    with checkpoints.open(probe) as file:
        arrays = {name: file[name] for name in file}
    if "output" not in arrays or "query" not in arrays:
        raise ValueError(f"{probe}: expected arrays named query and output, got {', '.join(arrays) or 'none'}")
    output = arrays.pop("output")
    candidates = layouts.detect(reader.outline())
    names = [candidate.layout for candidate in candidates]
    if not names:
        return origin
    kind = layouts.get(names[0])
    layer = next(iter(kind.match(reader).values()))
    tensors = {local: reader[full] for local, full in layer.items()}
    number, kv_number = config_json.heads(config)
    sizes = kind.infer(tensors, heads or number, kv_heads or kv_number)
    settled = probe_layer(tensors, names, sizes, inputs=arrays, output=output)
    say(console, f"  probe: {settled[0]}" if len(settled) else "  probe: no candidate fits")
    named = origin if origin == "auto" else families.layout_of(origin)
    if named not in ("auto", settled.layout):
        raise ValueError(f"--from {origin} is layout {named}, but {probe} shows that it is {settled.layout}")
    return settled.layout if origin == "auto" else origin


def size(count: int) -> str:
    """Bytes in words: 1.97 GB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"


def _plain(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def say(console: Console, text: str) -> None:
    """A line, in as many as the console's width asks for, with --wide in one."""
    text = text if console.soft_wrap else wrapped(text, console.width)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
