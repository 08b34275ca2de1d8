"""What a family file says: under which names a model's tensors are stored, and of which kind each is.

A file is TOML, so that a family from a stranger is data and never code. Its names are patterns in which `*` stands for
an index (`*+1`: one more than the index of the layer it belongs to). Each is given a kind:

    "encoder.layer.*.output.dense" = "dense"
    "h.*.mlp.c_fc" = "dense, transposed"
    "lm_head" = "dense as head, no bias, tied wte"

=============  =====================================================  ==========================================
kind           PyTorch                                                Flax
=============  =====================================================  ==========================================
`attention`    the tensors of a layout, named after it                those of a Flax layout
`dense`        `weight` [out, in], `bias` [out]                       `kernel` [in, out], `bias`
`conv`         `weight` [out, in, *window], `bias`                    `kernel` [*window, in, out], `bias`
`norm`         `weight`, `bias`                                       `scale`, `bias`
`embedding`    `weight`                                               `embedding`
`raw`          the tensor itself                                      the tensor itself
`buffer`       a table that a model computes when it is built: not carried over
=============  =====================================================  ==========================================

`buffer arange` is checked to hold 0, 1, 2, ..., and is made again when the file is converted back.

After the kind: `as NAME`, the name all families of one model share (default: its own). Then, each after a comma:
`no bias`; `bias?` (in all layers or in none); `optional` (in all layers or in none; what belongs to a head is, unless
it is `required`); `sparse` (in any layers);
`transposed` (a dense matrix stored the other way round); `tied NAME` (may be missing, and is then the tensor of that
shared name); for attention `heads KEY` and `kv_heads KEY`: where a config.json says how many (`a.b|c`: b in a, else c;
`width/64`: one for every 64 features).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskattn._problems import Problems
from maskattn.convert import layouts
from maskattn.convert.config_json import HEADS, KV_HEADS

MAKERS = ("arange",)
KINDS = ("attention", "dense", "conv", "norm", "embedding", "raw", "buffer")
SEPARATORS = {"torch": ".", "flax": "/"}
SIZE_LIMIT = 1_000_000
_FLAGS = ("no bias", "bias?", "optional", "required", "sparse", "transposed")
_WITH_NAME = ("tied", "heads", "kv_heads")
_NAME = re.compile(r"[A-Za-z0-9_.\-/*+|]+\Z")
_TEXTS = ("name", "model", "about", "style", "layout", "heads", "kv_heads")
_LISTS = ("prefixes", "model_types")
_TABLES = ("when", "layers", "body", "head")


@dataclass(frozen=True)
class Rule:
    """One line: the tensors at `pattern` are of `kind`, and `neutral` to all families of the model.

    `required`: a checkpoint without them is incomplete. `prefixed`: the family's prefix stands before them.
    """

    pattern: str
    kind: str
    neutral: str
    layout: str = ""
    maker: str = ""
    bias: str = "yes"
    required: bool = True
    sparse: bool = False
    transposed: bool = False
    prefixed: bool = True
    tied: str | None = None
    heads: str | None = None
    kv_heads: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a module of this kind, by their Flax names; `("",)` for a tensor by itself."""
        weight = {"dense": "kernel", "conv": "kernel", "norm": "scale", "embedding": "embedding"}.get(self.kind, "")
        if self.kind in ("dense", "conv", "norm") and self.bias != "no":
            return (weight, "bias")
        return (weight,)

    def shared(self, indices: Iterable[int], part: str = "") -> str:
        """The name that all families of the model share for a module's part, or for an attention layer."""
        given = iter(indices)
        name = "".join(str(next(given)) if letter == "*" else letter for letter in self.neutral)
        return f"{name}.{part}" if part else name


@dataclass(frozen=True)
class Family:
    """A model as one library stores it. `rules` are tried in their order; the first whose pattern fits decides.

    Attributes:
      name: by which it is asked for. model: families of one model convert into each other.
      style: "torch" or "flax": how modules name and lay out their parts. separator: what joins names.
      layout: of its attention layers. prefixes: what may stand before all names of the body, the usual one first.
      model_types, when: what a config.json says of it. layers: pattern of a layer -> the key of their number.
      scan: whether its layers are usually stacked. scan_axis: which axis of a stacked tensor counts layers.
    """

    name: str
    model: str
    style: str
    layout: str
    rules: tuple[Rule, ...]
    about: str = ""
    prefixes: tuple[str, ...] = ("",)
    model_types: tuple[str, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    scan: bool = False
    scan_axis: int = 0
    separator: str = "."


def read(path: Path) -> Family:
    """The family that a file describes; ValueError lists everything wrong with it."""
    if path.stat().st_size > SIZE_LIMIT:
        raise ValueError(f"{path}: a family file of {path.stat().st_size} bytes; the limit is {SIZE_LIMIT}")
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid TOML ({error})") from None
    return parse(data, str(path))


def parse(data: Mapping[str, Any], where: str) -> Family:
    """A family from what its file holds."""
    problems = Problems(where)
    _check(problems, data)
    problems.raise_if_any()
    heads = data.get("heads", HEADS), data.get("kv_heads", KV_HEADS)
    rules: list[Rule] = []
    for section in ("body", "head"):
        for pattern, text in data.get(section, {}).items():
            rule = _rule(problems, pattern, text, section == "body", data["layout"], heads, data["style"])
            rules += [rule] if rule else []
    if not problems:
        _check_rules(problems, rules)
    problems.raise_if_any()
    return Family(
        name=data["name"],
        model=data.get("model", data["name"]),
        style=data["style"],
        layout=data["layout"],
        rules=tuple(rules),
        about=data.get("about", ""),
        prefixes=tuple(data.get("prefixes", [""])),
        model_types=tuple(data.get("model_types", [])),
        when=dict(data.get("when", {})),
        layers=dict(data.get("layers", {})),
        scan=data.get("scan", False),
        scan_axis=data.get("scan_axis", 0),
        separator=SEPARATORS[data["style"]],
    )


def _check(problems: Problems, data: Mapping[str, object]) -> None:
    known = (*_TEXTS, *_LISTS, *_TABLES, "scan", "scan_axis")
    for name in data:
        if name not in known:
            problems.value(f"{name!r} is not known; expected {', '.join(known)}")
    for name in ("name", "style", "layout", "body"):
        if name not in data:
            problems.value(f"{name} is missing")
    for name in _TEXTS:
        if name in data and not isinstance(data[name], str):
            problems.value(f"{name} must be text, got {data[name]!r}")
    for name in _LISTS:
        values = data.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            problems.value(f"{name} must be a list of text, got {values!r}")
    for name in _TABLES:
        values = data.get(name, {})
        if not isinstance(values, dict):
            problems.value(f"{name} must be a table, got {values!r}")
        elif name != "when" and not all(isinstance(value, str) for value in values.values()):
            problems.value(f"{name} must hold text only")
    if "style" in data:
        problems.choice("style", data["style"], tuple(SEPARATORS))
    if "layout" in data and isinstance(data["layout"], str):
        _known_layout(problems, "layout", data["layout"])
    if not isinstance(data.get("scan", False), bool):
        problems.value(f"scan must be true or false, got {data['scan']!r}")
    axis = data.get("scan_axis", 0)
    if type(axis) is not int or axis < 0:
        problems.value(f"scan_axis must be an axis, got {axis!r}")


def _rule(
    problems: Problems,
    pattern: str,
    text: str,
    body: bool,
    layout: str,
    heads: tuple[str, str],
    style: str,
) -> Rule | None:
    first, *options = (part.strip() for part in text.split(","))
    head, _, neutral = first.partition(" as ")
    kind, _, argument = head.strip().partition(" ")
    given: dict[str, str] = {}
    flags: list[str] = []
    for option in options:
        word, _, value = option.partition(" ")
        if option in _FLAGS:
            flags.append(option)
        elif word in _WITH_NAME and value:
            given[word] = value
        else:
            problems.value(f"{pattern!r}: unknown option {option!r}; known are {', '.join((*_FLAGS, *_WITH_NAME))}")
    if kind not in KINDS:
        problems.value(f"{pattern!r}: unknown kind {kind!r}; known are {', '.join(KINDS)}")
    for what in filter(None, (pattern, neutral, given.get("tied"))):
        if not _NAME.match(what) or ".." in what:
            problems.value(f"{pattern!r}: {what!r} is no pattern of a name")
    if kind == "attention":
        _known_layout(problems, repr(pattern), argument or layout)
    elif argument and not (kind == "buffer" and argument in MAKERS):
        problems.value(f"{pattern!r}: {kind} takes no argument, got {argument!r}")
    if problems:
        return None
    neutral = neutral.strip() or pattern.replace(SEPARATORS[style], ".")
    return Rule(
        pattern,
        kind,
        neutral,
        layout=(argument or layout) if kind == "attention" else "",
        maker=argument if kind == "buffer" else "",
        bias="no" if "no bias" in flags else "maybe" if "bias?" in flags else "yes",
        required="required" in flags
        or (body and kind != "buffer" and not {"optional", "sparse"} & set(flags) and "tied" not in given),
        sparse="sparse" in flags,
        transposed="transposed" in flags,
        prefixed=body,
        tied=given.get("tied"),
        heads=given.get("heads", heads[0]) if kind == "attention" else None,
        kv_heads=given.get("kv_heads", heads[1]) if kind == "attention" else None,
    )


def _check_rules(problems: Problems, rules: list[Rule]) -> None:
    seen: dict[str, str] = {}
    for rule in rules:
        if rule.neutral in seen and rule.kind != "buffer":
            problems.value(f"{rule.pattern!r} and {seen[rule.neutral]!r} both stand for {rule.neutral!r}")
        seen[rule.neutral] = rule.pattern
        if rule.pattern.count("*") != rule.neutral.count("*"):
            problems.value(f"{rule.pattern!r} and {rule.neutral!r} must have the same number of *")
    for rule in rules:
        if rule.tied is not None and rule.tied not in seen:
            problems.value(f"{rule.pattern!r} is tied to {rule.tied!r}, which is no name here")


def _known_layout(problems: Problems, what: str, name: str) -> None:
    try:
        layouts.get(name)
    except ValueError as error:
        problems.value(f"{what}: {error}")
