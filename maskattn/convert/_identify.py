"""Which form a checkpoint is in, and which one is asked for: by names that are all accounted for, not by a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from maskattn.checkpoints import TensorInfo
from maskattn.convert import families, layouts
from maskattn.convert._match import attention_alone, match, matches
from maskattn.convert._model import Model
from maskattn.convert.families import GENERIC, Family, Form
from maskattn.convert.lazy import Lazy

Infos = Mapping[str, TensorInfo]
_SHOWN = 5


def identify(infos: Infos, source: str, family: Family | None, model_config: Mapping[str, object]) -> Model:
    """What ``infos`` are; ValueError where it cannot be told. ``source``: "auto", a family's name or a layout's.

    ``family`` (one of the user's own) is tried before the library's.
    """
    known = _families(family)
    if source == "auto":
        models = matches(infos, model_config, families.forms(family)) if family else ()
        models = models or matches(infos, model_config)
        return _only(models, infos, model_config) if models else _incomplete(infos, family, model_config)
    if source in known:
        return _named(infos, known[source], model_config)
    layout = layouts.get(source).name
    among = [form for each in known.values() for form in families.forms(each) if _stores(form, layout)]
    models = matches(infos, model_config, among)
    return _only(models, infos, model_config) if models else _alone(infos, layout)


def target_form(
    target: str | None, origin: Form, family: Family | None, scan: bool | None, prefixes: Mapping[str, str]
) -> Form:
    """The form asked for: a family of the same model, or the origin's module names with a layout of attention.

    ``prefixes``: what stood before the names when the checkpoint was of a family.
    """
    known = _families(family)
    if target is None:
        return replace(origin, scan=origin.scan if scan is None else scan)
    if target in known and not origin.attention_only:
        to = known[target]
        if to.model != origin.family.model:
            described = f"describes {to.model}, but the source is {origin.family.model}"
            raise ValueError(f"--to {target}: {described}; {_expected(known, origin)}")
        return Form(to, None, to.scan if scan is None else scan, _prefix(to, origin, prefixes))
    layout = layouts.get(target).name
    own = origin.family.layout == layout and origin.family.style == GENERIC.get(layout, origin.family.style)
    if not own and layout not in GENERIC and not origin.attention_only:
        described = f"a whole {origin.family.model} is not stored with that layout"
        raise ValueError(f"--to {target}: {described}; {_expected(known, origin)}")
    return Form(origin.family, None if own else layout, bool(scan), origin.prefix)


def _expected(known: Mapping[str, Family], origin: Form) -> str:
    others = [name for name, family in known.items() if family.model == origin.family.model]
    return f"expected one of {', '.join([*others, *GENERIC])}"


def _prefix(to: Family, origin: Form, prefixes: Mapping[str, str]) -> str:
    """The same as the origin's, as it was before, or the usual one."""
    if to is origin.family:
        return origin.prefix
    if prefixes.get(to.name) in to.prefixes:
        return prefixes[to.name]
    same = origin.prefix.replace(origin.family.separator, to.separator)
    return same if len(origin.family.prefixes) > 1 and same in to.prefixes else to.prefixes[0]


def _families(family: Family | None) -> dict[str, Family]:
    known = {each.name: each for each in families.all_families()}
    return known | ({family.name: family} if family else {})


def _stores(form: Form, layout: str) -> bool:
    return layout in (form.layout, *(rule.layout for rule in form.family.rules if form.layout is None))


def _only(models: tuple[Model, ...], infos: Infos, model_config: Mapping[str, object]) -> Model:
    if len(models) > 1:
        lines = [f"  {model.form}: all {len(infos)} names accounted for" for model in models]
        raise ValueError("\n".join([f"{len(models)} families fit these names: name one with --family", *lines]))
    (model,) = models
    model.evidence = (f"{model.form}: all {len(infos)} names are accounted for, none is missing",)
    if model_config.get("model_type") in model.form.family.model_types:
        model.evidence += (f"config.json says model_type {model_config['model_type']}",)
    return model


def _named(infos: Infos, family: Family, model_config: Mapping[str, object]) -> Model:
    """The form of a family that was asked for, wrong as it may be: the one that knows most of the names."""
    exact = matches(infos, model_config, families.forms(family))
    model = exact[0] if exact else _nearest(infos, family, model_config)
    known = f"all {len(infos)} names are accounted for" if exact else _faulty(model)
    model.evidence = (f"{model.form}: asked for; {known}",)
    return model


def _nearest(infos: Infos, family: Family, model_config: Mapping[str, object]) -> Model:
    near = [match(form, infos, model_config) for form in families.forms(family)]
    return min((model for model in near if model), key=lambda model: (len(model.left_over), len(model.missing)))


def _faulty(model: Model) -> str:
    return f"{len(model.left_over)} names left over, {len(model.missing)} missing"


def _incomplete(infos: Infos, family: Family | None, model_config: Mapping[str, object]) -> Model:
    """No family accounts for every name exactly. One that knows most is reported; attention alone needs no family."""
    candidates = [family] if family else [f for f in families.all_families() if _could_be(f, model_config)]
    near = [_nearest(infos, each, model_config) for each in candidates] if infos else []
    near = [model for model in near if (model.layers or model.tensors) and len(model.left_over) * 2 < len(infos)]
    if near:
        best = min(near, key=lambda model: len(model.left_over) + len(model.missing))
        best.evidence = (f"{best.form}: fits best; {_faulty(best)}",)
        return best
    outlines = {name: Lazy.read(name, *info) for name, info in infos.items()}
    return _alone(infos, layouts.detect(outlines).layout)


def _could_be(family: Family, model_config: Mapping[str, object]) -> bool:
    model_type = model_config.get("model_type")
    return model_type is None or model_type in family.model_types or not family.model_types


def _alone(infos: Infos, layout: str) -> Model:
    model = attention_alone(infos, layouts.get(layout))
    if not model.layers:
        raise ValueError(f"no attention layer of layout {layout} among {len(infos)} tensors: {some(infos)}")
    others = f"no family accounts for the other {len(model.left_over)} names"
    model.evidence = (f"layout {layout}: {len(model.layers)} attention layers; {others}",)
    return model


def some(names: Mapping[str, object]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more if listed else "no tensors"
