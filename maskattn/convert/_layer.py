"""One attention layer of a checkpoint, as lazy tensors: from its stored form to the canonical one, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from maskattn.config import AttentionConfig
from maskattn.convert import config_json, layouts
from maskattn.convert._model import Heads, Layer
from maskattn.convert.layouts import CANONICAL, EXTRAS, Layout
from maskattn.convert.lazy import Lazy, NeedsNumbers, Read, constant
from maskattn.typing import NumPyArray as Array

Convert = Callable[[Mapping[str, Any], AttentionConfig], Mapping[str, Any]]
"""``to_canonical`` or ``from_canonical`` of a layout."""


def sizes(
    layer: Layer, model_config: Mapping[str, object], asked: Heads, remembered: Heads, *, force: bool = False
) -> AttentionConfig:
    """The configuration that the shapes of a stored layer admit. ValueError where they admit none.

    Heads are those of ``model_config``, a config.json; as asked for; as the file remembers; by the family's rule; or
    by the shape of an extra. What the file remembers of its conversion may be contradicted by ``force`` alone.
    """
    index = layer.indices[0] if layer.indices else None
    paths = layer.rule.heads or "", layer.rule.kv_heads or ""
    told = [config_json.look_up(model_config, path, index) for path in paths]
    for what, mine, theirs in zip(("num_heads", "num_kv_heads"), asked, told, strict=True):
        if mine is not None and isinstance(theirs, int) and mine != theirs:
            raise ValueError(
                f"{layer.all_of_it}{what} is {mine} as asked for (--heads, --kv-heads), and {theirs} by the "
                f"configuration: leave it out, or name another (--config)"
            )
    number, kv_number = (value if isinstance(value, int) else other for value, other in zip(told, asked, strict=True))
    if number is None:
        number, kv_number = remembered
    elif kv_number is None and number == remembered[0]:
        kv_number = remembered[1]
    if number is None and "width/" in paths[0]:
        number = _width(layer) // int(paths[0].rpartition("width/")[2]) or None
    for extra in layer.layout.extras:
        if number is None and "H" in extra.axes and extra.name in layer.tensors:
            number = layer.tensors[extra.name].shape[extra.axes.index("H")]
    try:
        inferred = layer.layout.infer(layer.tensors, number, kv_number)
        scale = layouts.get(layer.rule.layout).scale  # a generic layout does not have that of the family's own
        found = inferred if scale is None else dataclasses.replace(inferred, scale=scale)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{layer.all_of_it}{error}") from None
    if remembered not in ((None, None), (found.num_heads, found.num_kv_heads)) and not force:
        raise ValueError(
            f"{layer.all_of_it}{found.num_heads} heads and {found.num_kv_heads} key/value heads, but it was converted "
            f"with {remembered[0]} and {remembered[1]}, its provenance says: --force goes against that"
        )
    return found


def to_canonical(layer: Layer, config: AttentionConfig, *, beside: bool) -> Layer:
    """A stored layer in canonical form. ``beside``: extras may stand beside it, under their canonical names.

    ValueError lists what is wrong.
    """
    layout, given, kept = layer.layout, dict(layer.tensors), {}
    for local in layer.tensors if beside else ():
        plain = local.replace(layout.separator, ".")
        if plain in EXTRAS and not any(extra.name == local for extra in layout.extras):
            kept[plain] = given.pop(local)
    _raise(layouts.mismatches(layout, given, config, layer.where))
    buffers = {buffer.name for buffer in layout.buffers} & set(given)
    held = {local: lazy for local, lazy in given.items() if local not in buffers}
    try:
        canonical = _lazily(layout.to_canonical, held, config)
    except NeedsNumbers:
        parts = {name: (stored,) for stored, names in layout.sources(config).items() for name in names}
        parts |= {extra.canonical: (extra.name,) for extra in layout.extras}
        shapes = CANONICAL.shapes(config, layout.extras_of(held, config))
        canonical = _when_needed(layout.to_canonical, held, config, parts, shapes, layer)
    _raise([layer.all_of_it + reason for reason in layouts.mixed_dtypes(canonical | kept)])
    checks: tuple[Callable[[Read], None], ...] = ()
    if buffers:
        extras = {local for local in given if any(extra.name == local for extra in layout.extras)}
        needed = {local: given[local] for local in buffers | extras}
        checks = (_check(layout.to_canonical, needed, config, layer.where),)
    return layer._replace(
        layout=CANONICAL,
        tensors=canonical | kept,
        config=config,
        steps=layout.reading(config, given),
        checks=checks,
        dropped=tuple(given[local].sources[0] for local in sorted(buffers)),
        tables=tuple(given[b.name].sources[0] for b in layout.buffers if b.name in buffers and b.build is None),
    )


def from_canonical(layer: Layer, layout: Layout, *, beside: bool) -> Layer:
    """A canonical layer as ``layout`` stores it. ``beside``: an extra without a place there may stand beside it.

    ValueError lists everything that cannot be held.
    """
    given, config = dict(layer.tensors), layer.config
    extras = {name: lazy.shape for name, lazy in given.items() if name in EXTRAS}
    kept: dict[str, Lazy] = {}
    if beside:
        for name in [name for name, shape in extras.items() if layout.place(name, shape, config) is None]:
            kept[name.replace(".", layout.separator)] = given.pop(name)
            del extras[name]
    reasons = [f"{layer.all_of_it}layout {layout.name} cannot hold it: {why}" for why in layout.unsupported(config)]
    _raise(reasons + [layer.where + reason for reason in layout.misfits(extras, config)])
    checks: tuple[Callable[[Read], None], ...] = ()
    if not layout.key_bias and "key.bias" in given:
        checks = (_check(layout.from_canonical, {"key.bias": given.pop("key.bias")}, config, layer.where),)
    shapes = layout.shapes(config, extras)
    try:
        stored = _lazily(layout.from_canonical, given, config)
    except NeedsNumbers:
        parts = layout.sources(config) | {extra.name: (extra.canonical,) for extra in layout.extras}
        stored = _when_needed(layout.from_canonical, given, config, parts, shapes, layer._replace(layout=layout))
    _raise([f"{layer.where}{name} would be missing" for name in shapes if name not in stored])
    steps = layout.writing(config)
    return layer._replace(layout=layout, tensors=stored | kept, steps=steps, checks=checks, dropped=(), tables=())


def _lazily(convert: Convert, tensors: Mapping[str, Lazy], config: AttentionConfig) -> dict[str, Lazy]:
    made = convert(tensors, config)
    return {name: value if isinstance(value, Lazy) else constant(value) for name, value in made.items()}


def _when_needed(
    convert: Convert,
    tensors: Mapping[str, Lazy],
    config: AttentionConfig,
    parts: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    layer: Layer,
) -> dict[str, Lazy]:
    """For a layout that looks at numbers: each tensor converted when it is needed, from the ``parts`` it is made of."""

    def one(name: str, shape: tuple[int, ...]) -> Lazy:
        needed = {part: tensors[part] for part in parts.get(name, tensors)}
        sources = tuple(dict.fromkeys(source for lazy in needed.values() for source in lazy.sources))
        operations = tuple(dict.fromkeys(what for lazy in needed.values() for what in lazy.operations))

        def make(read: Read) -> Array:
            return cast(Array, _called(convert, needed, config, layer.where, read)[name])

        what = f"as {layer.layout.name} does"
        return Lazy(shape, next(iter(needed.values())).dtype, sources, (*operations, what), make)

    return {name: one(name, shape) for name, shape in shapes.items()}


def _check(convert: Convert, needed: Mapping[str, Lazy], config: AttentionConfig, where: str) -> Callable[[Read], None]:
    def check(read: Read) -> None:
        _called(convert, needed, config, where, read)

    return check


def _called(
    convert: Convert, needed: Mapping[str, Lazy], config: AttentionConfig, where: str, read: Read
) -> Mapping[str, object]:
    arrays = {name: lazy.evaluate(read) for name, lazy in needed.items()}
    try:
        return convert(arrays, config)
    except ValueError as error:
        raise ValueError("\n".join(where + line.strip() for line in str(error).splitlines())) from None


def _width(layer: Layer) -> int:
    try:
        return layer.layout.infer(layer.tensors, 1, 1).embed_dim
    except (TypeError, ValueError):
        return 0


def _raise(reasons: list[str]) -> None:
    if reasons:
        raise ValueError("\n".join(reasons))
