"""Which form a checkpoint is in, and which one is asked for: by names that are all accounted for, not by a guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from maskattn.checkpoints import TensorInfo
from maskattn.convert import families, layouts
from maskattn.convert.families import GENERIC, Family, Form, Match, Rule
from maskattn.convert.layouts._check import problems

Infos = Mapping[str, TensorInfo]
_SHOWN = 5


class Found(NamedTuple):
    """A form that a checkpoint is in, and what shows it."""

    match: Match
    evidence: tuple[str, ...]


def source_form(infos: Infos, source: str, family: Family | None, config: Mapping[str, Any], rest: str) -> Found:
    """The form of ``infos``; ValueError where it cannot be told. ``source``: "auto", a family's name or a layout's.

    ``family`` (one of the user's own) is tried before the library's. ``rest`` other than "error" allows names that the
    form does not know.
    """
    known = _families(family)
    if source == "auto":
        found = families.identify(infos, config, families.forms(family)) if family else ()
        found = found or families.identify(infos, config)
        return _only(found, infos, config) if found else _incomplete(infos, family, config, rest)
    if source in known:
        return _named(infos, known[source], config)
    layout = layouts.get(source).name
    among = [form for each in known.values() for form in families.forms(each) if _stores(form, layout)]
    found = families.identify(infos, config, among)
    return _only(found, infos, config) if found else _plain(infos, layout)


def target_form(
    target: str | None, origin: Form, family: Family | None, scan: bool | None, prefixes: Mapping[str, str]
) -> Form:
    """The form asked for: a family of the same model, or the origin's module names with a layout of attention.

    ``prefixes``: what stood before the names when the checkpoint was of a family.
    """
    known = _families(family)
    stacked = origin.scan if scan is None else scan
    if target is None:
        return Form(origin.family, origin.layout, stacked, origin.prefix)
    if target in known and not plain(origin):
        to = known[target]
        if to.model != origin.family.model:
            others = [name for name, each in known.items() if each.model == origin.family.model]
            raise ValueError(
                f"--to {target}: describes {to.model}, but the source is {origin.family.model}; "
                f"expected one of {', '.join([*others, *GENERIC])}"
            )
        return Form(to, None, to.scan if scan is None else scan, _prefix(to, origin, prefixes))
    layout = layouts.get(target).name
    own = origin.family.layout == layout and origin.family.style == GENERIC.get(layout, origin.family.style)
    if not own and layout not in GENERIC and not plain(origin):
        others = [name for name, each in known.items() if each.model == origin.family.model]
        raise ValueError(
            f"--to {target}: a whole {origin.family.model} is not stored with that layout; "
            f"expected one of {', '.join([*others, *GENERIC])}"
        )
    return Form(origin.family, None if own else layout, bool(scan), origin.prefix)


def _prefix(to: Family, origin: Form, prefixes: Mapping[str, str]) -> str:
    """The same as the origin's, as it was before, or the usual one."""
    if to is origin.family:
        return origin.prefix
    if prefixes.get(to.name) in to.prefixes:
        return prefixes[to.name]
    same = origin.prefix.replace(origin.family.separator, to.separator)
    return same if len(origin.family.prefixes) > 1 and same in to.prefixes else to.prefixes[0]


def plain(form: Form) -> bool:
    """Whether only attention layers are known of the checkpoint."""
    return form.family.model == ""


def _families(family: Family | None) -> dict[str, Family]:
    known = {each.name: each for each in families.all_families()}
    return known | ({family.name: family} if family else {})


def _stores(form: Form, layout: str) -> bool:
    return layout in (form.layout, *(rule.layout for rule in form.family.rules if form.layout is None))


def _only(found: tuple[Match, ...], infos: Infos, config: Mapping[str, Any]) -> Found:
    if len(found) > 1:
        lines = [f"  {describe(match.form)}: all {len(infos)} names accounted for" for match in found]
        raise ValueError("\n".join([f"{len(found)} families fit these names: name one with --family", *lines]))
    (match,) = found
    evidence = [f"{describe(match.form)}: all {len(infos)} names are accounted for, none is missing"]
    if config.get("model_type") in match.form.family.model_types:
        evidence.append(f"config.json says model_type {config['model_type']}")
    return Found(match, tuple(evidence))


def _named(infos: Infos, family: Family, config: Mapping[str, Any]) -> Found:
    """The form of a family that was asked for, its faults and all: the one that knows most of the names."""
    exact = families.identify(infos, config, families.forms(family))
    if exact:
        return Found(exact[0], (f"{describe(exact[0].form)}: asked for; all {len(infos)} names are accounted for",))
    match = _nearest(infos, family, config)
    left, missing = len(match.left_over), len(match.missing)
    return Found(match, (f"{describe(match.form)}: asked for; {left} names left over, {missing} missing",))


def _nearest(infos: Infos, family: Family, config: Mapping[str, Any]) -> Match:
    matches = [families.match(form, infos, config) for form in families.forms(family)]
    return min((m for m in matches if m), key=lambda m: (len(m.left_over), len(m.missing)))


def _incomplete(infos: Infos, family: Family | None, config: Mapping[str, Any], rest: str) -> Found:
    """No family accounts for every name exactly. One that knows most is reported; attention alone needs no family."""
    candidates = [family] if family else [f for f in families.all_families() if _could_be(f, config)]
    near = [_nearest(infos, each, config) for each in candidates] if infos else []
    near = [match for match in near if (match.layers or match.tensors) and len(match.left_over) * 2 < len(infos)]
    if near:
        best = min(near, key=lambda m: len(m.left_over) + len(m.missing))
        left, missing = len(best.left_over), len(best.missing)
        return Found(best, (f"{describe(best.form)}: fits best; {left} names left over, {missing} missing",))
    return _plain(infos, layouts.detect(outline(infos)).layout)


def _could_be(family: Family, config: Mapping[str, Any]) -> bool:
    return config.get("model_type") is None or config["model_type"] in family.model_types or not family.model_types


def _plain(infos: Infos, layout: str) -> Found:
    """Attention layers and nothing else: a family made for this one checkpoint."""
    kind = layouts.get(layout)
    layers = kind.match(infos)
    if not layers:
        raise ValueError(f"no attention layer of layout {layout} among {len(infos)} tensors: {_some(infos)}")
    heads = ("num_attention_heads", "num_key_value_heads")
    rules = tuple(
        Rule(
            prefix.removesuffix(kind.separator),
            "attention",
            prefix.removesuffix(kind.separator),
            layout,
            heads=heads[0],
            kv_heads=heads[1],
        )
        for prefix in layers
    )
    family = Family(layout, "", GENERIC.get(layout, "flax" if kind.separator == "/" else "torch"), layout, rules)
    match = families.match(Form(family), infos)
    assert match is not None
    claimed = {full for owned in layers.values() for full in owned.values()}
    for layer in match.layers.values():  # what a layout keeps outside a layer is no part of it
        layer.tensors = {local: stored for local, stored in layer.tensors.items() if stored.name in claimed}
    match.left_over = [name for name in infos if name not in claimed]
    others = f"no family accounts for the other {len(match.left_over)} names"
    return Found(match, (f"layout {layout}: {len(layers)} attention layers; {others}",))


def describe(form: Form) -> str:
    """A form in words."""
    if plain(form):
        text = form.layout or form.family.layout
    else:
        text = form.family.name if form.layout is None else f"{form.family.name} as {form.layout}"
    return text + (", layers stacked" if form.scan else "")


def outline(infos: Infos) -> dict[str, Any]:
    """Arrays of the right shapes and dtypes that hold nothing."""
    import numpy as np

    return {name: np.broadcast_to(np.zeros((), info.dtype), info.shape) for name, info in infos.items()}


def _some(names: Infos) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


__all__ = ["Found", "describe", "plain", "problems", "source_form", "target_form"]
