"""One attention layer of a checkpoint, as lazy tensors: from its stored form to the canonical one, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert import families, layouts
from maskattn.convert._lazy import Lazy, Read, constant
from maskattn.convert.families import Layer
from maskattn.convert.layouts._check import mixed_dtypes, problems
from maskattn.convert.layouts._extras import CANONICAL, Step
from maskattn.convert.layouts.canonical import Canonical

Array = np.ndarray[Any, Any]
Check = Callable[[Read], None]
"""Reads values and raises ValueError where they are not what the plan takes them to be."""
Heads = tuple[int | None, int | None]
"""Query heads and key/value heads."""


class Attention(NamedTuple):
    """One attention layer: canonical tensors, its sizes, and the name of one of its tensors."""

    tensors: dict[str, Lazy]
    config: AttentionConfig
    where: str


class Outcome(NamedTuple):
    """What reading or writing a layer gives: tensors by name, and what else there is to say."""

    tensors: dict[str, Lazy]
    steps: tuple[Step, ...] = ()
    checks: tuple[Check, ...] = ()
    dropped: tuple[str, ...] = ()


def number_of_heads(
    layer: Layer,
    layout: layouts.Layout,
    tensors: Mapping[str, Lazy],
    config: Mapping[str, Any],
    asked: Heads,
    remembered: Heads,
) -> Heads:
    """Heads by the config.json, as asked for, as the file remembers, by the family's rule, or by an extra's shape."""
    index = layer.indices[0] if layer.indices else None
    paths = layer.rule.heads or "", layer.rule.kv_heads or ""
    told = [families.look_up(config, path, index) for path in paths]
    number, kv_number = (value if isinstance(value, int) else other for value, other in zip(told, asked, strict=True))
    if number is None:
        number, kv_number = remembered
    if number is None and "width/" in paths[0]:
        number = _width(layout, tensors) // int(paths[0].rpartition("width/")[2]) or None
    for extra in layout.extras:
        if number is None and "H" in extra.axes and extra.name in tensors:
            number = tensors[extra.name].shape[extra.axes.index("H")]
    return number, kv_number


def read_layer(
    layout: layouts.Layout, tensors: Mapping[str, Lazy], heads: Heads, scale: float | None, prefix: str
) -> tuple[AttentionConfig, Outcome]:
    """The canonical tensors of a layer stored in ``layout``.

    ``scale``: that of the family's own layout, which a generic one does not store. ValueError lists what is wrong, each
    line with ``prefix``.
    """
    given, beside = dict(tensors), {}
    for local in tensors:  # extras that a generic form keeps beside the layer, under their canonical names
        plain = local.replace(layout.separator, ".")
        if plain in CANONICAL and not any(extra.name == local for extra in layout.extras):
            beside[plain] = given.pop(local)
    outlines = _outlines(given)
    try:
        config = layout.infer(outlines, *heads)
        if scale is not None:
            config = dataclasses.replace(config, scale=scale)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{prefix}{error}") from None
    found = problems(layout, outlines, config, prefix)
    if found:
        raise ValueError("\n".join(found))
    buffers = {buffer.name for buffer in layout.buffers} & set(given)
    held = {local: lazy for local, lazy in given.items() if local not in buffers}
    canonical = _lazily(layout.to_canonical, held, config) or _part_by_part(layout, held, config)
    found = mixed_dtypes(canonical | beside, prefix)
    if found:
        raise ValueError("\n".join(found))
    checks: tuple[Check, ...] = ()
    if buffers:
        extras = {local for local in given if any(extra.name == local for extra in layout.extras)}
        needed = {local: given[local] for local in buffers | extras}
        checks = (_check(layout.to_canonical, needed, config, prefix),)
    dropped = tuple(given[local].sources[0] for local in sorted(buffers))
    return config, Outcome(canonical | beside, layout.reading(config, given), checks, dropped)


def write_layer(layout: layouts.Layout, layer: Attention, prefix: str, *, generic: bool) -> Outcome:
    """The tensors of ``layer`` as ``layout`` stores them, by their names in the layer.

    ``generic``: an extra that has no place in ``layout`` stands beside the layer, under its canonical name. ValueError
    lists everything that cannot be held.
    """
    given, config = dict(layer.tensors), layer.config
    extras = {name: lazy.shape for name, lazy in given.items() if name in CANONICAL}
    beside: dict[str, Lazy] = {}
    if generic:
        for name in [name for name, shape in extras.items() if layout.place(name, shape, config) is None]:
            beside[name.replace(".", layout.separator)] = given.pop(name)
            del extras[name]
    found = [f"layout {layout.name} cannot hold it: {reason}" for reason in layout.unsupported(config)]
    found += layout.misfits(extras, config)
    if found:
        raise ValueError("\n".join(prefix + reason for reason in found))
    checks: tuple[Check, ...] = ()
    if not layout.key_bias and "key.bias" in given:
        checks = (_check(layout.from_canonical, {"key.bias": given.pop("key.bias")}, config, prefix),)
    written = _lazily(layout.from_canonical, given, config) or _part_by_part(layout, given, config, extras)
    missing = [f"{prefix}{name} would be missing" for name in layout.shapes(config, extras) if name not in written]
    if missing:
        raise ValueError("\n".join(missing))
    return Outcome(written | beside, layout.writing(config), checks)


def _lazily(convert: Callable[..., Any], tensors: Mapping[str, Lazy], config: AttentionConfig) -> dict[str, Lazy]:
    """What ``convert`` makes of planned tensors; {} where it looks at numbers, which a plan does not have."""
    try:
        made = cast(dict[str, Any], convert(tensors, config))
    except TypeError:
        return {}
    return {name: value if isinstance(value, Lazy) else constant(value) for name, value in made.items()}


def _part_by_part(
    layout: layouts.Layout,
    tensors: Mapping[str, Lazy],
    config: AttentionConfig,
    writing: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Lazy]:
    """For a layout that looks at numbers: each tensor converted when it is needed, from those that it depends on."""
    canonical = Canonical().shapes(config)
    out: dict[str, Lazy] = {}
    for entry in layout.stored(config):
        if writing is None:
            for name in entry.canonical:
                out[name] = _called(layout, layout.to_canonical, [entry.name], tensors, name, canonical[name], config)
        else:
            shape, names = layout.shapes(config)[entry.name], list(entry.canonical)
            out[entry.name] = _called(layout, layout.from_canonical, names, tensors, entry.name, shape, config)
    for name, lazy in tensors.items():
        if writing is None:
            extra = layout.extra(name, lazy.shape, config)
            if extra is not None:
                out[extra.canonical] = cast(Any, extra).to_canonical(lazy, config)
        elif name in writing:
            extra = layout.place(name, lazy.shape, config)
            if extra is not None:
                out[extra.name] = cast(Any, extra).from_canonical(lazy, config)
    return out


def _called(
    layout: layouts.Layout,
    convert: Callable[..., Any],
    needed: list[str],
    tensors: Mapping[str, Lazy],
    name: str,
    shape: tuple[int, ...],
    config: AttentionConfig,
) -> Lazy:
    parts = {part: tensors[part] for part in needed}
    sources = tuple(dict.fromkeys(source for lazy in parts.values() for source in lazy.sources))
    operations = tuple(dict.fromkeys(what for lazy in parts.values() for what in lazy.operations))

    def make(read: Read) -> Array:
        return cast(Array, convert({part: lazy.evaluate(read) for part, lazy in parts.items()}, config)[name])

    return Lazy(shape, tensors[needed[0]].dtype, sources, (*operations, f"as {layout.name} does"), make)


def _check(convert: Callable[..., Any], needed: Mapping[str, Lazy], config: AttentionConfig, prefix: str) -> Check:
    def check(read: Read) -> None:
        try:
            convert({name: lazy.evaluate(read) for name, lazy in needed.items()}, config)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from None

    return check


def _width(layout: layouts.Layout, tensors: Mapping[str, Lazy]) -> int:
    try:
        return layout.infer(_outlines(tensors), 1, 1).embed_dim
    except (TypeError, ValueError):
        return 0


def _outlines(tensors: Mapping[str, Lazy]) -> dict[str, Array]:
    return {name: np.broadcast_to(np.zeros((), lazy.dtype), lazy.shape) for name, lazy in tensors.items()}
