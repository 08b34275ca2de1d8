"""A checkpoint's names against a form: what each tensor is, what is missing, what is left over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from maskattn.checkpoints import TensorInfo
from maskattn.convert import config_json, families
from maskattn.convert._model import Layer, Model
from maskattn.convert.families import GENERIC, Family, Form, Rule
from maskattn.convert.layouts import Layout
from maskattn.convert.lazy import Lazy

Indices = tuple[int, ...]
Present = dict[Rule, dict[Indices, set[str]]]
"""The parts found of each rule, by the indices of their layer."""
LAYERS = 10_000  # more than any model has: a longer axis is none of layers


def match(
    form: Form,
    infos: Mapping[str, TensorInfo | Lazy],
    model_config: Mapping[str, object] | None = None,
    *,
    strict: bool = False,
) -> Model | None:
    """What ``infos`` are in ``form``; None where ``strict`` and a name is left over."""
    model, present = Model(form), Present()
    stacks: dict[tuple[str, Indices], int] = {}
    for name, info in infos.items():
        place = form.find(name)
        if place is not None and form.stacked(place[0]) and not _agrees(stacks, form, place, info):
            place = None
        if place is None and form.unread(name):
            model.unread.append(name)
            continue
        if place is None:
            if strict:
                return None
            model.left_over.append(name)
            continue
        rule, indices, part = place
        lazy = Lazy.read(name, info.shape, info.dtype)
        if rule.kind == "buffer":
            model.buffers[name] = rule, lazy
            continue
        tensors = {indices: lazy}
        if form.stacked(rule):
            every = (slice(None),) * form.scan_axis
            tensors = {(*indices, i): lazy[(*every, i)] for i in range(info.shape[form.scan_axis])}
        for at, tensor in tensors.items():
            _enter(model, rule, at, part, tensor)
            present.setdefault(rule, {}).setdefault(at, set()).add(part)
    groups: dict[str, set[Indices]] = {}
    for rule, places in present.items():
        groups.setdefault(_group(rule), set()).update(places)
    model.missing += _missing(form, present, groups)
    model.faults += _miscounted(form, groups, model_config or {})
    return model


def attention_alone(infos: Mapping[str, Any], layout: Layout, *, beside: bool = True, outer: str = "") -> Model:
    """The attention layers of ``layout`` among ``infos``, and nothing else: a family made for this one checkpoint.

    ``outer`` stands before the names of all layers, and is no part of theirs.
    What is no array (anything but a TensorInfo) is a layer's tensor as it is: its layout refuses it by name.
    """
    found = {prefix: names for prefix, names in layout.match(infos).items() if prefix.startswith(outer)}
    layers = {p.removeprefix(outer).removesuffix(layout.separator): (p, names) for p, names in found.items()}
    heads, kv_heads = config_json.HEADS, config_json.KV_HEADS
    rules = {at: Rule(at, "attention", at, layout.name, heads=heads, kv_heads=kv_heads) for at in layers}
    style = GENERIC.get(layout.name, "flax" if layout.separator == "/" else "torch")
    family = Family(layout.name, "", style, layout.name, tuple(rules.values()), separator=layout.separator)
    model = Model(Form(family, beside=beside, outer=outer))
    for at, (prefix, names) in layers.items():
        tensors = {local: infos[name] for local, name in names.items()}
        lazy = {n: Lazy.read(prefix + n, *x) if isinstance(x, TensorInfo) else x for n, x in tensors.items()}
        model.layers[at] = Layer(rules[at], (), prefix, layout, lazy)
    claimed = {name for _, names in layers.values() for name in names.values()}
    model.left_over = [name for name in infos if name not in claimed]
    return model


def matches(
    infos: Mapping[str, TensorInfo],
    model_config: Mapping[str, object] | None = None,
    among: Iterable[Form] | None = None,
) -> tuple[Model, ...]:
    """Every form whose names are exactly those of ``infos``: none missing, none left over.

    Forms that take every tensor for the same thing count once: a Flax tree made of BERT is one, whether the family's
    table has PyTorch's names or Flax's.

    ``model_config`` is a config.json, whose numbers of layers must be kept. ``among``: the forms to try; default: all
    forms of all families.
    """
    model_config = model_config or {}
    if among is None:
        among = [form for family in families.all_families() for form in families.forms(family)]
    plain = {_plain(name) for name in infos}
    models: list[Model] = []
    for form in among:
        if not _may_hold(form, plain):
            continue
        model = match(form, infos, model_config, strict=True)
        if model is not None and model.complete and (model.layers or model.tensors):
            same = [m for m in models if m.form.family is form.family and m.form.prefix == form.prefix]
            models += [] if same else [model]  # its own form is tried first
    models.sort(key=lambda m: (m.form.layout is not None, m.form.family.style != "torch"))
    return tuple({_meaning(m): m for m in reversed(models)}.values())[::-1]


def _agrees(
    stacks: dict[tuple[str, Indices], int], form: Form, place: tuple[Rule, Indices, str], info: TensorInfo | Lazy
) -> bool:
    """Whether a stacked tensor has as many layers as those it is stacked beside: a number that can be one of layers."""
    if len(info.shape) <= form.scan_axis or not 0 < info.shape[form.scan_axis] <= LAYERS:
        return False
    rule, indices, _ = place
    return stacks.setdefault((_group(rule), indices), info.shape[form.scan_axis]) == info.shape[form.scan_axis]


def _enter(model: Model, rule: Rule, indices: Indices, part: str, lazy: Lazy) -> None:
    if rule.kind == "attention":
        key, layout = rule.canonical_name(indices), model.form.layout_of(rule)
        if key not in model.layers:
            where = model.form.module(rule, indices) + (f"[{indices[-1]}]" if model.form.stacked(rule) else "")
            model.layers[key] = Layer(rule, indices, f"{where} ({layout.name}): ", layout, {})
        layer = model.layers[key]
        layer.tensors[part] = lazy
    else:
        model.tensors[rule.canonical_name(indices, part)] = model.form.as_flax(rule, part, lazy)


def _miscounted(form: Form, groups: Mapping[str, set[Indices]], model_config: Mapping[str, object]) -> list[str]:
    """Layers that are not as many as the configuration says, or not numbered without a gap."""
    faults: list[str] = []
    for pattern, path in form.family.layers.items():
        numbers = Counter(indices[:-1] for indices in groups.get(pattern, ()))  # of a nested one: within each layer
        told = {before: config_json.look_up(model_config, path, before[0] if before else None) for before in numbers}
        wrong = [at for at, found in numbers.items() if isinstance(told[at], int) and found != told[at]]
        for before in wrong[:1]:
            found, at = numbers[before], before[0] if before else None
            key = next(key for key in path.split("|") if config_json.look_up(model_config, key, at) is not None)
            faults.append(f"layers of {_numbered(pattern, before)}: {key} is {told[before]}, found {found}")
    for group, indices in groups.items():
        faults += _gaps(group, indices)
    return faults


def _missing(form: Form, present: Present, groups: Mapping[str, set[Indices]]) -> list[str]:
    missing: list[str] = []
    for rule in form.family.rules:
        here = present.get(rule, {})
        if rule.kind == "buffer" or not (rule.required or here):
            continue
        wanted = set(here) if rule.sparse else groups.get(_group(rule), set()) if "*" in rule.pattern else {()}
        if "*" in rule.pattern and rule.required and not wanted:
            missing.append(f"{form.outer}{form.prefix if rule.prefixed else ''}{rule.pattern} (of every layer)")
        everywhere = set().union(*here.values())
        for place in sorted(wanted):
            missing += _parts_missing(form, rule, place, here.get(place, set()), everywhere)
    return list(dict.fromkeys(missing))


def _parts_missing(form: Form, rule: Rule, indices: Indices, have: set[str], everywhere: set[str]) -> list[str]:
    if rule.kind == "attention":  # which tensors a layer must have is for its layout to say
        return [] if have else [form.module(rule, indices)]
    parts = [part for part in rule.parts if part != "bias" or rule.bias == "yes" or part in everywhere]
    if rule.tied is not None and not rule.required:  # the weight is another's; a bias of its own may be there alone
        parts = [part for part in parts if part == "bias" or part in everywhere]
    return [form.name(rule, indices, part) for part in parts if part not in have]


def _group(rule: Rule) -> str:
    """What a rule's layers are counted with: its pattern up to its last index."""
    return rule.pattern[: rule.pattern.rfind("*") + 1]


def _numbered(pattern: str, before: Indices) -> str:
    """A pattern with its first indices filled in."""
    for number in before:
        pattern = pattern.replace("*", str(number), 1)
    return pattern


def _gaps(group: str, present: set[Indices]) -> list[str]:
    """Layers count from 0 without a gap, within each group of a nested pattern."""
    gaps: list[str] = []
    for before in {indices[:-1] for indices in present if indices}:
        numbers = {indices[-1] for indices in present if indices[:-1] == before}
        absent = [i for i in range(max(numbers)) if i not in numbers]
        if absent:
            gaps.append(f"{group}: the indices {before or ''} {', '.join(map(str, absent[:5]))} of {max(numbers) + 1}")
    return gaps


def _meaning(model: Model) -> Hashable:
    """What each stored tensor is taken for: equal for forms that make no difference."""
    tensors = frozenset((name, lazy.sources, lazy.operations) for name, lazy in model.tensors.items())
    layers = frozenset(
        (name, layer.layout.name, local, lazy.sources, lazy.operations)
        for name, layer in model.layers.items()
        for local, lazy in layer.tensors.items()
    )
    return model.form.family.model, model.form.style, model.form.scan_axis, tensors, layers


def _may_hold(form: Form, plain: set[str]) -> bool:
    """Cheaply: whether every name, its numbers set aside, is one that the form has."""
    whole, within = form.plain_names
    return all(name in whole or name.startswith(within) or form.unread(name.replace("#", "0")) for name in plain)


def _plain(name: str) -> str:
    return re.sub(r"\d+", "#", name)
