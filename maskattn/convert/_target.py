"""Which form a checkpoint is to be brought into: the one asked for, or the one that it once came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from maskattn.convert import families
from maskattn.convert._identify import layout_named
from maskattn.convert._identity import About, lookalikes
from maskattn.convert._model import Model
from maskattn.convert._provenance import Recorded, Spelling
from maskattn.convert.families import GENERIC, Family, Form

_SHOWN = 6


def target_form(
    target: str | None,
    origin: Form,
    about: About,
    scan: bool | None,
    came_from: Recorded | None,
    prefixes: Mapping[str, str],
    spellings: Mapping[str, Spelling],
) -> Form:
    """The form asked for: a family of the same model, or the origin's module names with a layout of attention.

    None: that of the first source, where the file says (``came_from``), otherwise the one it is in. ``prefixes`` and
    ``spellings``: how the names were when the checkpoint was of a family.
    """
    if target is None and came_from is not None:
        return _first(came_from, origin, about, scan, prefixes, spellings)
    if target is None:
        return replace(origin, scan=origin.scan if scan is None else scan, outer="")
    known = about.known
    if target in known and not origin.attention_only:
        to = known[target]
        _refuse_another_model(to, origin, about)
        return _of_family(to, origin, to.scan if scan is None else scan, prefixes, spellings)
    layout = layout_named("--to", target, known)
    own = origin.family.layout == layout and origin.family.style == GENERIC.get(layout, origin.family.style)
    if not own and layout not in GENERIC and not origin.attention_only:
        described = f"a whole {origin.family.model} is not stored with that layout"
        raise ValueError(f"--to {target}: {described}; {_expected(known, origin)}")
    if own and not origin.attention_only:
        return _of_family(origin.family, origin, bool(scan), prefixes, spellings)
    return Form(origin.family, layout if not own else None, bool(scan), origin.prefix)


def unstackable(to: Form) -> list[str]:
    """Why the layers of a form cannot be stacked: some stand within layers that would be stacked themselves."""
    groups = {rule.pattern[: rule.pattern.rfind("*") + 1] for rule in to.family.rules if to.stacked(rule)}
    within = sorted(
        inner for inner in groups for outer in groups if inner != outer and inner.startswith(outer) and outer
    )
    return [f"{inner}: lies within layers that are stacked; --no-scan keeps them apart" for inner in within]


def against(stored: Model, about: About) -> str:
    """What the file says of its own form and ``force`` overrides, in words; empty where it is read as it says."""
    said, form = about.recorded, stored.form
    if said is None or not about.force:
        return ""
    name = (form.layout or form.family.layout) if form.attention_only else form.family.name
    layout = None if form.attention_only else form.layout
    own = said.layout == form.family.layout and layout is None
    if said.name == name and (said.layout == layout or own) and said.scan == form.scan:
        return ""
    return f"its provenance says that it is {said}: taken for {form} all the same, by --force"


def bind(stored: Model, to: Form, source: str, about: About) -> tuple[str, str]:
    """The type of model that the target is of, and what was overridden; notes what a person should know."""
    said, family = about.said, stored.form.family
    if stored.form.attention_only:
        return said.model_type, ""
    if not said.model_type:
        alike = lookalikes(family) if to.family is not family and about.recorded is None else []
        if alike:
            others = ", ".join(alike[:_SHOWN]) + (" and others" if len(alike) > _SHOWN else "")
            stored.notes.append(
                f"nothing says which model it is, and {others} are named alike: taken for {family.name}"
            )
        return "", ""
    if family is about.own:
        if family.model_types and said.model_type not in family.model_types:
            stored.notes.append(f"{said}, which is none of {family.name}'s ({', '.join(family.model_types)})")
        return said.model_type, ""
    if not said.foreign(family):
        return said.model_type, ""
    how = "--force" if about.force else f"--from {source}"
    overridden = f"{said}: taken for {family.name} all the same, by {how}"
    stored.notes.append(f"warning: {overridden}")
    return "", overridden


def _first(
    came_from: Recorded,
    origin: Form,
    about: About,
    scan: bool | None,
    prefixes: Mapping[str, str],
    spellings: Mapping[str, Spelling],
) -> Form:
    """The form of the first source, with its prefix and its spelling."""
    stacked = came_from.scan if scan is None else scan
    if origin.attention_only or came_from.whole is False:
        return Form(origin.family, layout_named("its provenance", came_from.name, about.known), stacked, origin.prefix)
    family = about.known.get(came_from.name)
    if family is None:
        raise ValueError(
            f"it was made from the form {came_from}, and there is no family {came_from.name} here: give its file with "
            f"--family, or say with --to what is wanted"
        )
    layout = None if came_from.layout == family.layout else came_from.layout
    if layout is None:
        return _of_family(family, origin, stacked, prefixes, spellings)
    return Form(family, layout, stacked, _prefix(family, origin, prefixes))


def _of_family(
    to: Family, origin: Form, scan: bool, prefixes: Mapping[str, str], spellings: Mapping[str, Spelling]
) -> Form:
    """A family in its own layout, its names as they were before."""
    spelling = spellings.get(to.name, Spelling())
    return Form(to, None, scan, _prefix(to, origin, prefixes), outer=spelling.outer, old_norms=spelling.old_norms)


def _refuse_another_model(to: Family, origin: Form, about: About) -> None:
    if to.model != origin.family.model:
        described = f"describes {to.model}, but the source is {origin.family.model}"
        raise ValueError(f"--to {to.name}: {described}; {_expected(about.known, origin)}")


def _expected(known: Mapping[str, Family], origin: Form) -> str:
    others = [name for name in known if _model(name, known) == origin.family.model]
    return f"expected one of {', '.join([*others, *GENERIC])}"


def _model(name: str, known: Mapping[str, Family]) -> str:
    """What a family describes; the library's are not made for it."""
    return families.model_of(name) if name in families.names() else known[name].model


def _prefix(to: Family, origin: Form, prefixes: Mapping[str, str]) -> str:
    """The same as the origin's, as it was before, or the usual one."""
    if to is origin.family:
        return origin.prefix
    if prefixes.get(to.name) in to.prefixes:
        return prefixes[to.name]
    same = origin.prefix.replace(origin.family.separator, to.separator)
    return same if len(origin.family.prefixes) > 1 and same in to.prefixes else to.prefixes[0]
