"""A checkpoint as the model it holds, free of any library's names and orders: what every conversion passes through.

Tensors are lazy. Modules are as Flax has them (`kernel` [in, out], `scale`, `embedding`), attention layers are in
canonical form, under the names shared by all families of the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.convert import families, layouts
from maskattn.convert._layer import Attention, Check, Heads, Outcome, number_of_heads, read_layer, write_layer
from maskattn.convert._lazy import Lazy, Read, stack
from maskattn.convert._memory import Buffer
from maskattn.convert.families import Form, Match, Rule, Stored
from maskattn.convert.layouts._extras import Step

Array = np.ndarray[Any, Any]


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

    def take(self, outcome: Outcome) -> None:
        """Notes what reading or writing a layer has to say."""
        self.add_steps(outcome.steps)
        self.checks += outcome.checks
        self.dropped.update(dict.fromkeys(outcome.dropped, "checked to be what a model computes when it is built"))


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
        layout, prefix = form.layout_of(layer.rule), f"{name} ({form.layout_of(layer.rule).name}): "
        numbers = number_of_heads(layer, layout, tensors, config, heads, remembered.get(name, (None, None)))
        try:
            sizes, outcome = read_layer(layout, tensors, numbers, layouts.get(layer.rule.layout).scale, prefix)
        except ValueError as error:
            neutral.problems += str(error).splitlines()
            continue
        neutral.take(outcome)
        neutral.layers[name] = Attention(outcome.tensors, sizes, first)
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
        try:
            outcome = write_layer(
                form.layout_of(rule), layer, f"{key} ({layer.where}): ", generic=form.layout in families.GENERIC
            )
        except ValueError as error:
            neutral.problems += str(error).splitlines()
            continue
        neutral.take(outcome)
        for local, lazy in outcome.tensors.items():
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


__all__ = ["Attention", "Check", "Heads", "Neutral", "read", "write"]
