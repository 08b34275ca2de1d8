"""A checkpoint's names against a family in one form: what each tensor is, what is missing, what is left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from maskattn.checkpoints import TensorInfo
from maskattn.convert.families._form import Form
from maskattn.convert.families._spec import Rule

Indices = tuple[int, ...]
LAYERS = 10_000  # more than any model has: a longer axis is none of layers


class Stored(NamedTuple):
    """Where a tensor is: the name of the stored tensor, and which of its layers where it holds several."""

    name: str
    layer: int | None = None


@dataclass
class Layer:
    """One attention layer: its rule, its indices, its tensors by their names in the layer."""

    rule: Rule
    indices: Indices
    tensors: dict[str, Stored] = field(default_factory=dict)


@dataclass
class Match:
    """What the names of a checkpoint are in a form.

    Keys are the names shared by all families of a model: `blocks.3.norm1.scale`, and `blocks.3.attn` for a layer.
    """

    form: Form
    tensors: dict[str, tuple[Rule, str, Stored]] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    buffers: dict[str, Rule] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every name has its place and every place its name."""
        return not self.left_over and not self.missing


def key(rule: Rule, indices: Sequence[int], part: str) -> str:
    """The name that all families of a model share for one tensor, or for one attention layer (`part` "")."""
    given = iter(indices)
    name = "".join(str(next(given)) if letter == "*" else letter for letter in rule.neutral)
    return f"{name}.{part}" if part else name


def match(
    form: Form, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None = None, *, strict: bool = False
) -> Match | None:
    """What ``infos`` are in ``form``; None where ``strict`` and a name is left over."""
    result = Match(form)
    present: dict[Rule, dict[Indices, set[str]]] = {}
    stacks: dict[tuple[str, Indices], int] = {}
    for name, info in infos.items():
        found = form.find(name)
        if found is not None and form.stacked(found[0]) and not _agrees(stacks, form, found, info):
            found = None
        if found is None:
            if strict:
                return None
            result.left_over.append(name)
            continue
        rule, indices, part = found
        if rule.kind == "buffer":
            result.buffers[name] = rule
            continue
        places: list[tuple[Indices, Stored]] = [(indices, Stored(name))]
        if form.stacked(rule):
            places = [((*indices, i), Stored(name, i)) for i in range(info.shape[form.scan_axis])]
        for where, stored in places:
            _enter(result, rule, where, part, stored)
            present.setdefault(rule, {}).setdefault(where, set()).add(part)
    result.missing += _missing(form, present, config or {})
    return result


def _agrees(
    stacks: dict[tuple[str, Indices], int], form: Form, found: tuple[Rule, Indices, str], info: TensorInfo
) -> bool:
    """Whether a stacked tensor has as many layers as those it is stacked beside: a number that can be one of layers."""
    if len(info.shape) <= form.scan_axis or not 0 < info.shape[form.scan_axis] <= LAYERS:
        return False
    rule, indices, _ = found
    return stacks.setdefault((_group(rule), indices), info.shape[form.scan_axis]) == info.shape[form.scan_axis]


def _enter(result: Match, rule: Rule, indices: Indices, part: str, stored: Stored) -> None:
    if rule.kind == "attention":
        layer = result.layers.setdefault(key(rule, indices, ""), Layer(rule, indices))
        layer.tensors[part] = stored
    else:
        result.tensors[key(rule, indices, part)] = (rule, part, stored)


def _missing(form: Form, present: Mapping[Rule, Mapping[Indices, set[str]]], config: Mapping[str, Any]) -> list[str]:
    groups: dict[str, set[Indices]] = {}
    for rule, found in present.items():
        groups.setdefault(_group(rule), set()).update(found)
    missing: list[str] = []
    for pattern, path in form.family.layers.items():
        count, have = look_up(config, path), groups.get(pattern, set())
        if isinstance(count, int) and have and len(have) != count:
            missing.append(f"layers of {pattern}: {path} is {count}, found {len(have)}")
    for group, indices in groups.items():
        missing += _gaps(group, indices)
    for rule in form.family.rules:
        here = present.get(rule, {})
        if rule.kind == "buffer" or not (rule.required or here):
            continue
        wanted = set(here) if rule.sparse else groups.get(_group(rule), set()) if "*" in rule.pattern else {()}
        if "*" in rule.pattern and rule.required and not wanted:
            missing.append(f"{form.prefix if rule.prefixed else ''}{rule.pattern}: no such layer")
        everywhere = set().union(*here.values())
        for place in sorted(wanted):
            missing += _parts_missing(form, rule, place, here.get(place, set()), everywhere)
    return list(dict.fromkeys(missing))


def _parts_missing(form: Form, rule: Rule, indices: Indices, have: set[str], everywhere: set[str]) -> list[str]:
    module = form.module(rule, indices[:-1] if form.stacked(rule) else indices)
    if rule.kind == "attention":  # which tensors a layer must have is for its layout to say
        return [] if have else [module]
    parts = [part for part in rule.parts if part != "bias" or rule.bias == "yes" or part in everywhere]
    return [module + form.leaf(part) for part in parts if part not in have]


def _group(rule: Rule) -> str:
    """What a rule's layers are counted with: its pattern up to its last index."""
    return rule.pattern[: rule.pattern.rfind("*") + 1]


def _gaps(group: str, found: set[Indices]) -> list[str]:
    """Layers count from 0 without a gap, within each group of a nested pattern."""
    gaps: list[str] = []
    for before in {indices[:-1] for indices in found if indices}:
        numbers = {indices[-1] for indices in found if indices[:-1] == before}
        absent = [i for i in range(max(numbers)) if i not in numbers]
        if absent:
            gaps.append(f"{group}: the indices {before or ''} {', '.join(map(str, absent[:5]))} of {max(numbers) + 1}")
    return gaps


def look_up(config: Mapping[str, Any], paths: str, index: int | None = None) -> Any:
    """The value at the first of ``paths`` that a config.json has; None where it has none.

    Keys are joined by dots, alternatives by bars. A list gives its entry of ``index``: sizes that differ from stage to
    stage.
    """
    for path in paths.split("|"):
        value: Any = config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, list):
            value = value[index] if index is not None and 0 <= index < len(value) else None
        if value is not None:
            return value
    return None
