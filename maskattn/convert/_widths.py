"""Whether the parts of a model fit together: every width against its neighbours' and against the configuration.

Which widths must be equal is what the model's row says for the configuration; where that is not whole, what it says for
sizes of no model (``families._rows.sizes``). In the file of a family of one's own it is words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from maskattn.convert import config_json
from maskattn.convert._identity import About
from maskattn.convert._model import Model
from maskattn.convert.families import Sizes, sizes
from maskattn.convert.families._family import WIDTH

_LAYER = ("embed_dim", "kdim", "vdim", "out_dim", "head_dim", "v_head_dim", "num_heads", "num_kv_heads")
_WIDTHS_OF_LAYER = 4
"""Of these, those that other tensors have too."""


class Seen(NamedTuple):
    """The width of one tensor: what it must be equal to, how wide it is, and where: its name, and its line."""

    word: str
    width: int
    times: int
    name: str
    line: str


def mismatches(model: Model, about: About) -> list[str]:
    """Every width that is not that of its neighbours, or not that of the configuration, in words; and what is missing.

    Where nothing says which must be equal, the model's notes say so.
    """
    family, missing = model.form.family, list[str]()
    own = None if family.widths or family is about.own else sizes(family, about.said.model_type, about.config)
    if family.widths:
        seen, told = list(_by_words(model, family.widths)), _told(family.widths, about)
    elif model.form.attention_only or own is None:
        unsaid = f"widths are not compared: no [widths] of {family.name} say which must be equal"
        model.notes += [] if model.form.attention_only else [unsaid]
        return []
    else:
        seen, told = list(_by_row(model, own)), {str(number): said for number, said in own.told.items() if said[0]}
        if own.whole:
            told = {one.word: (int(one.word), "by the configuration") for one in seen} | told
            held = {*model.tensors, *model.layers}
            missing = [f"{name}: missing" for name in sorted(own.needed - held) if family.unread and not model.missing]
    alike: dict[tuple[str, str, int], list[Seen]] = {}
    right = {word: told.get(word) or _usual(seen, word) for word in {one.word for one in seen}}
    for one in seen:
        if one.width != right[one.word][0] * one.times:
            alike.setdefault((one.line, one.word, one.width), []).append(one)
    return missing + [_said(group, *right[word]) for (_, word, _), group in alike.items()]


def _said(group: list[Seen], wanted: int, because: str) -> str:
    first, more = group[0], f" (and {len(group) - 1} more alike)" if len(group) > 1 else ""
    what = first.word
    if what.isdigit():  # of a row
        what = because.partition(" of the ")[0] if " of the " in because else "width"
    return f"{first.name}: {what} is {first.width}{more}, expected {wanted * first.times}: {because}"


def _usual(seen: list[Seen], word: str) -> tuple[int, str]:
    counts = Counter(one.width // one.times for one in seen if one.word == word)
    width, times = counts.most_common(1)[0]
    other = next(one for one in seen if one.word == word and one.width // one.times == width)
    return width, f"that of {other.name}" + (f" and {times - 1} more tensors" if times > 1 else "")


def _by_row(model: Model, own: Sizes) -> Iterator[Seen]:
    """The widths of all that the model's row knows."""
    for key, lazy in model.tensors.items():
        line = own.line(key)
        for number, size in zip(own.shapes.get(line, ()), lazy.shape, strict=False):
            if own.whole or number in own.told:
                yield Seen(str(number), size, 1, ", ".join(lazy.sources[:1]), re.sub(r"\d+", "#", key))
    for key, layer in model.layers.items():
        alike = [config for name, config in own.attention.items() if own.line(name) == own.line(key)]
        for name in _LAYER if own.whole else _LAYER[:_WIDTHS_OF_LAYER]:
            numbers = {getattr(config, name) for config in alike}
            if len(numbers) == 1 and (own.whole or numbers <= own.told.keys()):
                yield Seen(str(*numbers), getattr(layer.config, name), 1, layer.own_name, name)


def _by_words(model: Model, table: Mapping[str, Any]) -> Iterator[Seen]:
    """The widths of all tensors and attention layers that a family's own table knows."""
    for key, lazy in model.tensors.items():
        place = model.form.place(key, attention=False)
        if place is None:
            continue
        rule, _, part = place
        words = str(table.get(rule.canonical, "")).split()
        shape = lazy.shape[-1:] if part == "bias" else lazy.shape
        for text, size in zip(reversed(words), reversed(shape), strict=False):
            yield from _one(text, size, ", ".join(lazy.sources[:1]), rule.canonical)
    for layer in model.layers.values():
        line, config = layer.rule.canonical, layer.config
        for text in str(table.get(line, "")).split():
            for size in dict.fromkeys((config.embed_dim, config.kdim, config.vdim, config.out_dim)):
                yield from _one(text, size, layer.own_name, line)
        if "head_dim" in table.get("config", {}):
            yield Seen("head_dim", config.head_dim, 1, layer.own_name, line)


def _one(text: str, size: int, name: str, line: str) -> Iterator[Seen]:
    match = WIDTH.match(text)
    if match is not None and text != "_":
        yield Seen(match[2], size, int(match[1] or 1), name, line)


def _told(table: Mapping[str, Any], about: About) -> dict[str, tuple[int, str]]:
    """The widths that the configuration says."""
    told: dict[str, tuple[int, str]] = {}
    for word, path in table.get("config", {}).items():
        value = config_json.look_up(about.config, path)
        if type(value) is int and value > 0:
            key = next(p for p in path.split("|") if config_json.look_up(about.config, p) == value)
            told[word] = value, f"{key} of the configuration"
    return told
