"""Which form a checkpoint is in: by names that are all accounted for and by what it says of itself, not by a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskattn._hf_config import nearest
from maskattn.checkpoints import TensorInfo
from maskattn.convert import _hints, families, layouts
from maskattn.convert._identity import About
from maskattn.convert._match import attention_alone, match, matches
from maskattn.convert._model import Model
from maskattn.convert._provenance import Recorded
from maskattn.convert.families import GENERIC, Family, Form
from maskattn.convert.lazy import Lazy

Infos = Mapping[str, TensorInfo]


def identify(infos: Infos, source: str, about: About) -> Model:
    """What ``infos`` are; ValueError where it cannot be told. ``source``: "auto", a family's name or a layout's."""
    said = about.recorded
    if said is not None and not _overridden(said, source, about):
        _check_recorded(said, source, about)
        return _as_recorded(infos, said, about)
    if source != "auto":
        return _as_asked(infos, source, about)
    if about.said.contradiction:
        raise ValueError(f"config.json contradicts itself ({about.said.contradiction}): name the form with --from")
    if about.own is not None:
        return _of_ones_own(infos, about.own, about)
    of_type = [about.known[name] for name in about.said.families]
    if about.said.model_type and not of_type:
        _refuse_unknown(about)
    models = matches(infos, about.config, about.forms(about.told))
    if models:
        return _only(models, infos, about)
    if of_type:
        _other_model(infos, about)
    return _incomplete(infos, about)


def _overridden(said: Recorded, source: str, about: About) -> bool:
    """Whether ``force`` reads the file as something else: as what is named, or because what it says is not known."""
    named = source != "auto" or about.own is not None
    return about.force and (named or (said.name not in about.known and said.whole is True))


def _as_asked(infos: Infos, source: str, about: About) -> Model:
    """The form of the family, or of the layout of attention, that was asked for."""
    if source in about.known:
        return _named(infos, about.known[source], about)
    layout = layout_named("--from", source, about.known)
    models = matches(infos, about.config, [form for form in about.forms(about.told) if _stores(form, layout)])
    return _only(models, infos, about) if models else _alone(infos, layout, about)


def _of_ones_own(infos: Infos, own: Family, about: About) -> Model:
    """A checkpoint of the user's own family; of another one of the same model, where it is not that."""
    models = matches(infos, about.config, about.forms([own]))
    others = () if models else matches(infos, about.config, about.forms(about.every))
    others = tuple(model for model in others if model.form.family.model == own.model)
    return _only(models or others, infos, about) if models or others else _named(infos, own, about)


def _check_recorded(said: Recorded, source: str, about: About) -> None:
    """Refuses a form, or a family, that is not the one which the provenance says."""
    same = {said.name, said.layout}
    if said.name in about.known and said.layout is None:
        same.add(about.known[said.name].layout)
    asked = source if source == "auto" or source in about.known else layout_named("--from", source, about.known)
    if asked != "auto" and asked not in same:
        raise ValueError(
            f"--from {source}: the file says that it is {said}, as it was converted; --force reads it as {source}"
        )
    if about.own is not None and about.own.name != said.name and about.own.model != _model_of(said, about):
        raise ValueError(f"--family {about.own.name}: the file says that it is {said}; --force reads it as another")


def _model_of(said: Recorded, about: About) -> str:
    return about.known[said.name].model if said.name in about.known else ""


def _as_recorded(infos: Infos, said: Recorded, about: About) -> Model:
    """The form that the provenance says; the nearest to it where the names were changed since."""
    family = about.known.get(said.name) if said.whole is not False else None
    if family is not None:
        layout = None if said.layout == family.layout else said.layout
        among = [f for f in about.forms([family]) if f.layout == layout and f.scan == said.scan]
        models = matches(infos, about.config, among)
        model = models[0] if models else _nearest(infos, among, about)
        if models or said.whole or len(model.left_over) * 2 < len(infos):
            known = f"all {len(infos)} names are accounted for, none is missing" if models else _faulty(model)
            model.evidence = (f"{model.form}: its provenance says so; {known}",)
            model.headline = "" if models else f"its provenance says {said}, but the names are not those of one"
            return model
    if said.whole:
        raise ValueError(
            f"its provenance says that it is {said}, and there is no family {said.name} here: give its file "
            f"with --family"
        )
    return _alone(infos, layout_named("its provenance", said.layout or said.name, about.known), about)


def layout_named(option: str, name: str, known: Mapping[str, Family]) -> str:
    """The layout of that name or alias; ValueError lists families and layouts, the likely one first."""
    try:
        return layouts.get(name).name
    except ValueError:
        meant = layouts.meant(name, [*known, *layouts.names()])
        listed = f"a family ({', '.join(known)}), a layout of whole models ({', '.join(GENERIC)}) or of attention alone"
        raise ValueError(f"{option} {name}: unknown form {name!r}{meant} {listed}") from None


def _stores(form: Form, layout: str) -> bool:
    rules = form.family.rules if form.layout is None else ()
    return layout in (form.layout, *(layouts.get(rule.layout).name for rule in rules if rule.kind == "attention"))


def _only(models: tuple[Model, ...], infos: Infos, about: About) -> Model:
    if len(models) > 1:
        lines = [f"  {model.form}: all {len(infos)} names accounted for" for model in models]
        raise ValueError("\n".join([f"{len(models)} families fit these names: name one with --from", *lines]))
    (model,) = models
    model.evidence = (f"{model.form}: all {len(infos)} names are accounted for, none is missing",)
    if about.said.model_type and not about.said.foreign(model.form.family):
        model.evidence += (str(about.said),)
    return model


def _refuse_unknown(about: About) -> None:
    """Refuses a type of model that no table describes, whatever names its tensors have."""
    raise ValueError(
        f"{about.said}, and no table describes it; {nearest(about.said.model_type, families.types())}: "
        f"docs/models.md#a-type-that-is-not-here says how a row is written; --from takes it for a family that has its "
        f"names, or for a layout of attention; {_hints.ADVICE}"
    )


def _other_model(infos: Infos, about: About) -> None:
    """Refuses a checkpoint whose names are those of another model than it says it is."""
    others = matches(infos, about.config, about.forms(about.every))
    if others:
        name = others[0].form.family.name
        raise ValueError(
            f"{about.said}, which is stored as {' or '.join(about.said.families)}, but its names are those of {name}: "
            f"--from {name} takes it for that all the same"
        )


def _named(infos: Infos, family: Family, about: About) -> Model:
    """The form of a family that was asked for, wrong as it may be: the one that knows most of the names."""
    exact = matches(infos, about.config, about.forms([family]))
    model = exact[0] if exact else _nearest(infos, about.forms([family]), about)
    known = f"all {len(infos)} names are accounted for" if exact else _faulty(model)
    model.evidence = (f"{model.form}: asked for; {known}",)
    if not exact:
        model.headline = f"the names are not those of {family.name}, which was asked for ({_faulty(model)})"
    return model


def _nearest(infos: Infos, among: Iterable[Form], about: About) -> Model:
    near = [match(form, infos, about.config) for form in among]
    return min((model for model in near if model), key=lambda model: (len(model.left_over), len(model.missing)))


def _faulty(model: Model) -> str:
    counts = ((len(model.left_over), "left over"), (len(model.missing), "missing"), (len(model.faults), "miscounted"))
    said = [f"{count} {what}" for count, what in counts if count]
    return f"of its names {', '.join(said)}" if said else "all names are accounted for"


def _incomplete(infos: Infos, about: About) -> Model:
    """No family accounts for every name exactly. One that knows most is reported; attention alone needs no family."""
    near = [_nearest(infos, about.forms([each]), about) for each in about.told] if infos else []
    within = sum(name.startswith(about.outer) for name in infos)
    near = [model for model in near if (model.layers or model.tensors) and _strange(model, about) * 2 < within]
    _hints.look_for_a_prefix(infos, about, min(map(_distance, near), default=len(infos)))
    if not near:
        outlines = {name: Lazy.read(name, *info) for name, info in infos.items()}
        return _alone(infos, _detected(outlines, about), about)
    best = min(near, key=_distance)
    best.evidence = (f"{best.form}: fits best; {_faulty(best)}",)
    who = str(about.said) if about.said.model_type else "nothing says which model it is"
    best.headline = f"{who}, and no family has exactly these {len(infos)} names; nearest is {best.form.family.name}"
    equal = {m.form.family.name for m in near if _distance(m) == _distance(best) and _apart(m, best)}
    if equal:
        best.reasons.append(f"{', '.join(sorted(equal))}: as near; name one with --from")
    return best


def _strange(model: Model, about: About) -> int:
    """How many names are left over, what has not the prefix that was to be taken off aside."""
    return sum(name.startswith(about.outer) for name in model.left_over)


def _distance(model: Model) -> int:
    return len(model.left_over) + len(model.missing) + len(model.faults)


def _apart(one: Model, other: Model) -> bool:
    """Whether two forms are read otherwise: of different models, or with attention in another layout."""
    mine, theirs = one.form.family, other.form.family
    return mine.model != theirs.model or (one.form.layout is None and mine.layout != theirs.layout)


def _who(about: About) -> str:
    """What a checkpoint says it is, and that it is none that is known."""
    if about.said.families:
        return f"{about.said}, which is stored as {' or '.join(about.said.families)}, and its names are of neither"
    return "no family has these names"


def _detected(outlines: Mapping[str, Lazy], about: About) -> str:
    try:
        return layouts.detect(outlines).layout
    except ValueError as error:
        raise ValueError(f"{_who(about)}; {error}\n{_hints.ADVICE}") from None


def _alone(infos: Infos, layout: str, about: About) -> Model:
    model = attention_alone(infos, layouts.get(layout), outer=about.outer)
    if not model.layers:
        raise ValueError(f"no attention layer of layout {layout} among {len(infos)} tensors: {_hints.some(infos)}")
    others = f"no family accounts for the other {len(model.left_over)} names"
    model.evidence = (f"layout {layout}: {len(model.layers)} attention layers; {others}",)
    if model.left_over:
        model.headline = f"{_who(about)}; only {len(model.layers)} attention layers of layout {layout} are known"
    return model
