"""Whether the parts of a model fit together: every width against its neighbours' and against the configuration.

Which widths must be equal is data: in ``widths.toml``, or in the file of a family of one's own.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from maskattn.convert import config_json
from maskattn.convert._identity import About
from maskattn.convert._model import Model
from maskattn.convert.families._family import WIDTH

Width = tuple[str, int | None]
"""A word of the table, and the stage it is of."""


class Seen(NamedTuple):
    """The width of one tensor: what it must be equal to, how wide it is, and where: its name, and its line."""

    word: Width
    width: int
    times: int
    name: str
    line: str


def mismatches(model: Model, about: About) -> list[str]:
    """Every width that is not that of its neighbours, or not that of the configuration, in words.

    Where nothing says which must be equal, the model's notes say so.
    """
    family = model.form.family
    table = family.widths or _table().get(family.model)
    if table is None:
        unsaid = f"widths are not compared: no [widths] of {family.name} say which must be equal"
        model.notes += [] if model.form.attention_only else [unsaid]
        return []
    seen = list(_all(model, table))
    told = _told(table, about)
    alike: dict[tuple[str, Width, int], list[Seen]] = {}
    right = {word: told.get(word) or _usual(seen, word) for word in {one.word for one in seen}}
    for one in seen:
        if one.width != right[one.word][0] * one.times:
            alike.setdefault((one.line, one.word, one.width), []).append(one)
    return [_said(group, *right[word]) for (_, word, _), group in alike.items()]


def _said(group: list[Seen], wanted: int, because: str) -> str:
    first, more = group[0], f" (and {len(group) - 1} more alike)" if len(group) > 1 else ""
    return f"{first.name}: {first.word[0]} is {first.width}{more}, expected {wanted * first.times}: {because}"


def _usual(seen: list[Seen], word: Width) -> tuple[int, str]:
    counts = Counter(one.width // one.times for one in seen if one.word == word)
    width, times = counts.most_common(1)[0]
    other = next(one for one in seen if one.word == word and one.width // one.times == width)
    return width, f"that of {other.name}" + (f" and {times - 1} more tensors" if times > 1 else "")


def _all(model: Model, table: Mapping[str, Any]) -> Iterator[Seen]:
    """The widths of all tensors and attention layers that the table knows."""
    last = max((layer.indices[0] for layer in model.layers.values() if len(layer.indices) > 1), default=0)
    same = _same(model, table)
    for key, lazy in model.tensors.items():
        place = model.form.place(key, attention=False)
        if place is None:
            continue
        rule, indices, part = place
        line = (
            rule.canonical.removesuffix(".kernel").removesuffix(".embedding") if rule.kind == "raw" else rule.canonical
        )
        words = str(table.get(line, "")).split()
        sizes = lazy.shape[-1:] if part == "bias" else lazy.shape
        for text, size in zip(reversed(words), reversed(sizes), strict=False):
            yield from _one(text, size, indices, last, same, ", ".join(lazy.sources[:1]), line)
    for layer in model.layers.values():
        line, config = layer.rule.canonical, layer.config
        for text in str(table.get(line, "")).split():
            for size in dict.fromkeys((config.embed_dim, config.kdim, config.vdim, config.out_dim)):
                yield from _one(text, size, layer.indices, last, same, layer.own_name, line)
        if "head_dim" in table.get("config", {}):
            yield Seen(("head_dim", None), config.head_dim, 1, layer.own_name, line)


def _one(
    text: str, size: int, indices: tuple[int, ...], last: int, same: Mapping[str, str], name: str, line: str
) -> Iterator[Seen]:
    match = WIDTH.match(text)
    if match is None or text == "_":
        return
    stage: int | None = None
    if "@" in text:
        which, here = match[3], indices[0] if indices else 0
        stage = {None: here, "+1": here + 1, "-1": last}.get(which, int(which) if which and which.isdigit() else 0)
    yield Seen((same.get(match[2], match[2]), stage), size, int(match[1] or 1), name, line)


def _same(model: Model, table: Mapping[str, Any]) -> dict[str, str]:
    """Two words that mean one width where a module that stands between them is absent."""
    if "unless" not in table:
        return {}
    module, word, other = table["unless"]
    return {} if f"{module}.kernel" in model.tensors else {word: other}


def _told(table: Mapping[str, Any], about: About) -> dict[Width, tuple[int, str]]:
    """The widths that the configuration says."""
    told: dict[Width, tuple[int, str]] = {}
    for text, path in table.get("config", {}).items():
        value, word = config_json.look_up(about.config, path), _width(text)
        if word[0] == "intermediate" and "mlp_ratio" in about.config:
            continue  # of these two, the model goes by the ratio
        if type(value) is int and value > 0:
            key = next(p for p in path.split("|") if config_json.look_up(about.config, p) == value)
            told[word] = value, f"{key} of the configuration"
    told |= _by_ratio(about.config, told)
    heads, _ = config_json.heads(about.config)
    hidden, known = told.get(("hidden", None)), about.said.known
    if "head_dim" in table.get("config", {}) and ("head_dim", None) not in told:
        if known is not None and known.head_dim and about.config:
            told["head_dim", None] = known.head_dim, f"that of {known.model_type}"
        elif heads and hidden and about.config.get("head_dim") is None:
            told["head_dim", None] = hidden[0] // heads, f"{hidden[0]} wide over {heads} heads, of the configuration"
    feed_forward = config_json.feed_forward(about.config)
    if feed_forward and ("intermediate", None) not in told:
        told["intermediate", None] = feed_forward, "what params.json makes of dim and multiple_of"
    return told


def _by_ratio(config: Mapping[str, object], told: Mapping[Width, tuple[int, str]]) -> dict[Width, tuple[int, str]]:
    """The widths of MLPs whose configuration says how many times as wide they are (DINOv2, Swin)."""
    ratio = config.get("mlp_ratio")
    if not isinstance(ratio, (int, float)) or ratio <= 0:
        return {}
    by_ratio: dict[Width, tuple[int, str]] = {}
    for word, mlp in ((("hidden", None), ("intermediate", None)), (("stage", 0), ("mlp", 0))):
        if word in told:
            wide, because = told[word]
            by_ratio[mlp] = int(wide * ratio), f"{because}, times mlp_ratio"
    if config.get("use_swiglu_ffn") and ("intermediate", None) in by_ratio:
        wide, because = by_ratio.pop(("intermediate", None))
        by_ratio["gated", None] = -(-int(wide * 2 / 3) // 8) * 8, f"{because}, two thirds of it in eights"
    return by_ratio


def _width(text: str) -> Width:
    word, at, stage = text.partition("@")
    return word, int(stage or 0) if at else None


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("widths.toml").read_text(encoding="utf-8"))
