"""A checkpoint as the model it holds, free of any library's names and orders: what every conversion passes through.

Tensors are lazy. Modules are as Flax has them (`kernel` [in, out], `scale`, `embedding`), attention layers are in
canonical form, under the names shared by all families of the model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from maskattn import families, layouts
from maskattn._lazy import Lazy, Read, constant, stack
from maskattn._remembered import Buffer
from maskattn.checkpoints import TensorInfo
from maskattn.config import AttentionConfig
from maskattn.families import Form, Layer, Match, Rule, Stored
from maskattn.layouts._check import mixed_dtypes, problems
from maskattn.layouts._extras import CANONICAL, Step

Array = np.ndarray[Any, Any]
Check = Callable[[Read], None]
"""Reads values and raises ValueError where they are not what the plan takes them to be."""
Heads = tuple[int | None, int | None]
"""Query heads and key/value heads."""


@dataclass
class Attention:
    """One attention layer: canonical tensors, its sizes, and where it was found."""

    tensors: dict[str, Lazy]
    config: AttentionConfig
    where: str


@dataclass
class Neutral:
    """`tensors` and `layers` by their shared names; what must be checked or said; everything that is wrong."""

    tensors: dict[str, Lazy] = field(default_factory=dict)
    layers: dict[str, Attention] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_steps(self, steps: tuple[Step, ...]) -> None:
        """Notes named steps; the same step of many layers once."""
        self.steps.update({str(step): step for step in steps})


def read(
    found: Match,
    infos: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    heads: Heads,
    remembered: Mapping[str, Heads],
) -> Neutral:
    """What ``found`` says of ``infos``, as lazy tensors.

    ``heads``: query and key/value heads where ``config`` has none. ``remembered``: those of layers by their shared
    names, where neither has any.
    """
    form, neutral = found.form, Neutral()
    for name, rule in found.buffers.items():
        neutral.dropped[name] = "a model computes it when it is built"
        if rule.maker:
            _read_buffer(neutral, name, rule.maker, infos[name])
    for name, (rule, part, stored) in found.tensors.items():
        neutral.tensors[name] = _oriented(_lazy(stored, infos, form), rule, part, form)
    for name, layer in found.layers.items():
        tensors = {local: _lazy(stored, infos, form) for local, stored in layer.tensors.items()}
        first = next(iter(layer.tensors.values())).name
        layout = form.layout_of(layer.rule)
        numbers = _heads(layer, layout, tensors, config, heads)
        if numbers[0] is None:
            numbers = remembered.get(name, numbers)
        scale = layouts.get(layer.rule.layout).scale
        _read_layer(neutral, name, layout, tensors, numbers, scale, first)
    rules = {families.key(rule, (), ""): rule for rule in form.family.rules if "*" not in rule.pattern}
    for name, rule in rules.items():
        if rule.tied is not None:
            neutral.ties[f"{name}.kernel"] = f"{rule.tied}.embedding"
    return neutral


def _read_buffer(neutral: Neutral, name: str, maker: str, info: TensorInfo) -> None:
    if not info.shape or info.dtype.kind not in "iu":
        neutral.problems.append(f"{name}: expected integers along an axis, got {info.dtype} {list(info.shape)}")
        return
    buffer = Buffer(maker, info.shape, info.dtype.name)

    def check(read: Read) -> None:
        if not np.array_equal(read(name), buffer.make()):
            raise ValueError(f"{name}: expected 0, 1, 2, ... along its last axis, got other numbers")

    neutral.buffers[name] = buffer
    neutral.dropped[name] = "checked to be 0, 1, 2, ...; made again when converted back"
    neutral.checks.append(check)


def _heads(layer: Layer, layout: layouts.Layout, tensors: Mapping[str, Lazy], config: Any, default: Heads) -> Heads:
    """Heads by the config.json, by the rule of the family, by an extra with one entry for each, or as asked for."""
    index = layer.indices[0] if layer.indices else None
    paths = layer.rule.heads or "", layer.rule.kv_heads or ""
    number, kv_number = (families.look_up(config, path, index) for path in paths)
    number = number if isinstance(number, int) else default[0]
    kv_number = kv_number if isinstance(kv_number, int) else default[1]
    if number is None and "width/" in paths[0]:
        number = _width(layout, tensors) // int(paths[0].rpartition("width/")[2])
    for extra in layout.extras:
        if number is None and "H" in extra.axes and extra.name in tensors:
            number = tensors[extra.name].shape[extra.axes.index("H")]
    return number, kv_number


def _width(layout: layouts.Layout, tensors: Mapping[str, Lazy]) -> int:
    try:
        return layout.infer(_outlines(tensors), 1, 1).embed_dim
    except (TypeError, ValueError):
        return 0


def _outlines(tensors: Mapping[str, Lazy]) -> dict[str, Array]:
    return {name: np.broadcast_to(np.zeros((), lazy.dtype), lazy.shape) for name, lazy in tensors.items()}


def _lazy(stored: Stored, infos: Mapping[str, TensorInfo], form: Form) -> Lazy:
    info = infos[stored.name]
    lazy = Lazy.read(stored.name, info.shape, info.dtype)
    if stored.layer is None:
        return lazy
    return lazy[(slice(None),) * form.scan_axis + (stored.layer,)]


def _oriented(lazy: Lazy, rule: Rule, part: str, form: Form, *, writing: bool = False) -> Lazy:
    """A module's part in Flax's orientation; with ``writing``, from it to the form's."""
    if rule.kind == "dense" and part == "kernel" and (form.style == "torch") != form.transposed(rule):
        return lazy.T
    if rule.kind == "conv" and part == "kernel" and form.style == "torch" and lazy.ndim > 2:
        n = lazy.ndim
        return lazy.transpose(*((n - 1, n - 2, *range(n - 2)) if writing else (*range(2, n), 1, 0)))
    return lazy


def _read_layer(
    neutral: Neutral,
    name: str,
    layout: layouts.Layout,
    tensors: dict[str, Lazy],
    heads: Heads,
    scale: float | None,
    where: str,
) -> None:
    beside = {}
    for local in list(tensors):  # extras that a generic form keeps beside the layer, under their canonical names
        plain = local.replace(layout.separator, ".")
        if plain in CANONICAL and not any(extra.name == local for extra in layout.extras):
            beside[plain] = tensors.pop(local)
    outlines = _outlines(tensors)
    prefix = f"{name} ({layout.name}): "
    try:
        config = layout.infer(outlines, *heads)
        if scale is not None:  # the family's own layout has it, a generic one does not store it
            config = dataclasses.replace(config, scale=scale)
    except (TypeError, ValueError) as error:
        neutral.problems.append(f"{prefix}{error}")
        return
    found = problems(layout, outlines, config, prefix)
    if found:
        neutral.problems += found
        return
    buffers = {buffer.name for buffer in layout.buffers} & set(tensors)
    planned = {k: v for k, v in tensors.items() if k not in buffers}
    canonical: dict[str, Any] = layout.to_canonical(cast(Any, planned), config)
    neutral.add_steps(layout.reading(config, tensors))
    if buffers:
        extras = {local for local in tensors if any(extra.name == local for extra in layout.extras)}
        needed = {local: tensors[local] for local in buffers | extras}
        neutral.checks.append(lambda read: _check_buffers(layout, needed, config, prefix, read))
        for local in buffers:
            neutral.dropped[tensors[local].sources[0]] = "computed by the model when it is built; checked to be so"
    lazies = {k: v if isinstance(v, Lazy) else constant(v) for k, v in canonical.items()} | beside
    neutral.problems += mixed_dtypes(lazies, prefix)
    neutral.layers[name] = Attention(lazies, config, where)


def _check_buffers(
    layout: layouts.Layout, needed: Mapping[str, Lazy], config: AttentionConfig, prefix: str, read: Read
) -> None:
    try:
        layout.to_canonical({local: lazy.evaluate(read) for local, lazy in needed.items()}, config)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def write(neutral: Neutral, form: Form, rest: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The tensors of ``neutral`` as ``form`` stores them, by their names there; what has no place is a problem.

    ``rest``: tensors that go along under their own names.
    """
    out: dict[str, Lazy] = {}
    stacks: dict[str, dict[int, Lazy]] = {}
    places = [(rule, part, re.compile(_shared(rule, part) + r"\Z")) for rule, part in _placeable(form)]
    fill_ties(neutral, form)

    def put(rule: Rule, indices: tuple[int, ...], name: str, lazy: Lazy) -> None:
        if form.stacked(rule):
            stacks.setdefault(name, {})[indices[-1]] = lazy
        elif name in out:
            neutral.problems.append(f"{name}: two tensors would have this name")
        else:
            out[name] = lazy

    for key, lazy in neutral.tensors.items():
        found = _place(places, key, attention=False)
        if found is None:
            neutral.problems.append(f"{key} ({', '.join(lazy.sources)}): {form.family.name} has no place for it")
            continue
        rule, part, indices = found
        module = form.module(rule, indices[:-1] if form.stacked(rule) else indices)
        put(rule, indices, module + form.leaf(part), _oriented(lazy, rule, part, form, writing=True))
    for key, layer in neutral.layers.items():
        found = _place(places, key, attention=True)
        if found is None:
            neutral.problems.append(f"{key} ({layer.where}): {form.family.name} has no such attention layer")
            continue
        rule, _, indices = found
        shown = indices[:-1] if form.stacked(rule) else indices
        for local, lazy in _write_layer(neutral, key, layer, form, rule).items():
            put(rule, indices, form.attention(rule, shown, local), lazy)
    for name, parts in stacks.items():
        shapes = {(part.shape, part.dtype) for part in parts.values()}
        if sorted(parts) != list(range(len(parts))) or len(shapes) > 1:
            neutral.problems.append(f"{name}: the layers cannot be stacked, they have {_several(shapes)}")
        else:
            out[name] = stack([parts[i] for i in range(len(parts))], form.scan_axis)
    for name, lazy in rest.items():
        if name in out:
            neutral.problems.append(f"{name}: the name of a tensor that is kept is also the name of a converted one")
        out[name] = lazy
    return out


def fill_ties(neutral: Neutral, form: Form) -> None:
    """Copies a tied embedding where the target cannot do without the tensor that the source leaves out."""
    required = {_shared(rule, part) for rule, part in _placeable(form) if rule.required}
    for name, tied in neutral.ties.items():
        if name not in neutral.tensors and re.escape(name) in required and tied in neutral.tensors:
            neutral.tensors[name] = neutral.tensors[tied].T
            neutral.add_steps((Step(f"tie {name}", f"absent, since it is {tied}: a copy of that is written"),))


def _write_layer(neutral: Neutral, key: str, layer: Attention, form: Form, rule: Rule) -> dict[str, Lazy]:
    layout, config, prefix = form.layout_of(rule), layer.config, f"{key} ({layer.where}): "
    given, extras = dict(layer.tensors), {k: v.shape for k, v in layer.tensors.items() if k in CANONICAL}
    beside: dict[str, Lazy] = {}
    if form.layout in families.GENERIC:
        for name, shape in list(extras.items()):
            if layout.place(name, shape, config) is None:
                beside[name.replace(".", layout.separator)] = given.pop(name)
                del extras[name]
    found = [f"layout {layout.name} cannot hold it: {reason}" for reason in layout.unsupported(config)]
    found += layout.misfits(extras, config)
    if found:
        neutral.problems += [prefix + reason for reason in found]
        return {}
    bias = given.get("key.bias")
    if not layout.key_bias and bias is not None:
        del given["key.bias"]
        zero = bias
        neutral.checks.append(lambda read: _check_zero(layout, zero, config, prefix, read))
    neutral.add_steps(layout.writing(config))
    written: dict[str, Any] = layout.from_canonical(cast(Any, given), config)
    missing = [name for name in layout.shapes(config, extras) if name not in written]
    neutral.problems += [f"{prefix}{name} would be missing" for name in missing]
    return {k: v if isinstance(v, Lazy) else constant(v) for k, v in written.items()} | beside


def _check_zero(layout: layouts.Layout, bias: Lazy, config: AttentionConfig, prefix: str, read: Read) -> None:
    try:
        layout.from_canonical({"key.bias": bias.evaluate(read)}, config)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _placeable(form: Form) -> list[tuple[Rule, str]]:
    return [(rule, part) for rule in form.family.rules if rule.kind != "buffer" for part in rule.parts]


def _shared(rule: Rule, part: str) -> str:
    name = rule.neutral + (f".{part}" if part else "")
    return r"(\d+)".join(re.escape(text) for text in name.split("*"))


def _place(
    places: list[tuple[Rule, str, re.Pattern[str]]], key: str, attention: bool
) -> tuple[Rule, str, tuple[int, ...]] | None:
    for rule, part, expression in places:
        found = expression.match(key) if (rule.kind == "attention") == attention else None
        if found is not None:
            return rule, part, tuple(int(number) for number in found.groups())
    return None


def _several(shapes: set[Any]) -> str:
    return " and ".join(sorted(f"{list(shape)} {dtype}" for shape, dtype in shapes))


__all__ = ["Attention", "Check", "Neutral", "read", "write"]
