"""What a family file says: under which names a model's tensors are stored, and of which kind each is.

A file is TOML, so that a family from a stranger is data and never code. Its first keys are the fields of `Family`. Then
`[body]`, and `[head]` for what may be missing as a whole, give each name its kind, or a table of the fields of `Rule`:

    "ln_f" = "norm"
    "h.*.mlp.c_fc" = { kind = "dense", transposed = true }
    "lm_head" = { kind = "dense", canonical = "head", bias = "no", tied = "wte" }

`[widths]` gives names their widths: `"ln_f" = "hidden"`, `"h.*.mlp.c_fc" = "hidden inner"`; those of one word must be
equal, and to what `widths.config = { hidden = "hidden_size" }` finds in a config.json.

Names are patterns in which `*` stands for an index (`*+1`: one more than the index of the layer it belongs to).

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
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from maskattn._problems import Problems
from maskattn.convert import layouts
from maskattn.convert.config_json import HEADS, KV_HEADS

KINDS = ("attention", "dense", "conv", "norm", "embedding", "raw", "buffer")
SEPARATORS = {"torch": ".", "flax": "/"}
SIZE_LIMIT = 1_000_000
#: The word of a width, and how often: `hidden`, `4*hidden`; `_` for any.
WIDTH = re.compile(r"(?:(\d+)\*)?(\w+)\Z")
_WIDTHS_OF = {"attention": 1, "norm": 1, "dense": 2, "embedding": 2}
_NAME = re.compile(r"[A-Za-z0-9_.\-/*+|]+\Z")
#: What a field holds, in words; the values of some; and the kind of module that others belong to.
_WORDS = {
    "str": "text",
    "bool": "true or false",
    "int": "an int of at least 0",
    "tuple[str, ...]": "a list of text",
    "Mapping[str, str]": "a table of text",
    "Mapping[str, Any]": "a table",
}
_CHOICES = {
    "style": tuple(SEPARATORS),
    "kind": KINDS,
    "bias": ("yes", "no", "maybe"),
    "maker": ("arange", "shifted-windows"),
}
_ONLY_OF = {"layout": "attention", "heads": "attention", "kv_heads": "attention", "maker": "buffer"}


@dataclass(frozen=True)
class Rule:
    """One line: the tensors at `pattern` are of `kind`.

    Attributes:
      canonical: the name that all families of one model share; not given: the pattern, with dots.
      layout: of an attention layer, where it is not the family's. heads, kv_heads: the same of these keys.
      maker: a buffer is checked, and made again when the file is converted back: "arange": 0, 1, 2, ...;
        "shifted-windows": Swin's mask.
      bias: "no"; "maybe": in all layers or in none.
      required: a checkpoint without them is incomplete; where not, they are in all layers or in none. Not given: all of
        the body but buffers, and what is sparse or tied. sparse: in any layers.
      transposed: a dense matrix stored the other way round.
      tied: may be missing, and is then the tensor of this canonical name.
      prefixed: the family's prefix stands before them, as before all of the body.
    """

    pattern: str
    kind: str
    canonical: str
    layout: str | layouts.Layout = ""
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

    def canonical_name(self, indices: Iterable[int], part: str = "") -> str:
        """The name that all families of the model share for a module's part, or for an attention layer."""
        given = iter(indices)
        name = "".join(str(next(given)) if letter == "*" else letter for letter in self.canonical)
        return f"{name}.{part}" if part else name


@dataclass(frozen=True)
class Family:
    """A model as one library stores it. `rules` are tried in their order; the first whose pattern fits decides.

    Attributes:
      name: by which it is asked for. model: families of one model convert into each other.
      style: "torch" or "flax": how modules name and lay out their parts. separator: what joins names.
      layout: of its attention layers. prefixes: what may stand before all names of the body, the usual one first.
      model_types: what a config.json calls it.
      layers: pattern of a layer -> the key of their number.
      heads, kv_heads: where a config.json says how many (`a.b|c`: b in a, else c; `width/64`: one for 64 features).
      scan: whether its layers are usually stacked. scan_axis: which axis of a stacked tensor counts layers.
      widths: which widths of its tensors must be equal, of a family of one's own.
      old_norms: files of it may call the parts of norms gamma and beta. unread: files of it may hold tensors that no
        model reads (`models.files.UNREAD`), which are kept under their names.
      leaves_out: canonical names that other families of the model have, and why this one does without.
    """

    name: str
    model: str
    style: str
    layout: str
    rules: tuple[Rule, ...] = ()
    about: str = ""
    prefixes: tuple[str, ...] = ("",)
    model_types: tuple[str, ...] = ()
    old_norms: bool = False
    unread: bool = False
    leaves_out: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    widths: Mapping[str, Any] = field(default_factory=dict)
    heads: str = HEADS
    kv_heads: str = KV_HEADS
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
    lines = {name: data.get(name, {}) for name in ("body", "head")}
    for name, table in lines.items():
        if not isinstance(table, dict):
            problems.value(f"{name} must be a table, got {table!r}")
    if not lines["body"]:
        problems.value("body is missing")
    given = {name: value for name, value in data.items() if name not in lines}
    if "name" in given:
        given.setdefault("model", given["name"])
    given = _fields(problems, Family, given, "", ("rules", "separator"))
    problems.raise_if_any()
    family = Family(**given, separator=SEPARATORS[given["style"]])
    rules = [
        _rule(problems, family, pattern, line, name == "body")
        for name, table in lines.items()
        for pattern, line in table.items()
    ]
    problems.raise_if_any()
    family = replace(family, rules=tuple(rules))
    _check_together(problems, family.rules)
    _check_widths(problems, family)
    problems.raise_if_any()
    return family


def _rule(problems: Problems, family: Family, pattern: str, line: object, body: bool) -> Any:
    """The rule of one line; None, and why, where something is wrong with it."""
    line = {"kind": line} if isinstance(line, str) else line
    if not isinstance(line, dict):
        return problems.value(f"{pattern!r} must be a kind or a table, got {line!r}")
    line = {"canonical": pattern.replace(family.separator, "."), **line}
    line = _fields(problems, Rule, line, f"{pattern!r}: ", ("pattern", "prefixed"))
    for name in (pattern, line.get("canonical", ""), line.get("tied", "-")):
        if not _NAME.match(name) or ".." in name:
            problems.value(f"{pattern!r}: {name!r} is no pattern of a name")
    kind = line.get("kind")
    for name in line:
        if _ONLY_OF.get(name, kind) != kind:
            problems.value(f"{pattern!r}: {name} is of {_ONLY_OF[name]} only, got {kind}")
    if problems:
        return None
    if kind == "attention":
        line = {"layout": family.layout, "heads": family.heads, "kv_heads": family.kv_heads, **line}
    line.setdefault("required", body and kind != "buffer" and not line.get("sparse") and "tied" not in line)
    return Rule(pattern, prefixed=body, **line)


def _fields(
    problems: Problems, cls: type, table: Mapping[str, Any], where: str, unread: tuple[str, ...]
) -> dict[str, Any]:
    """What a table gives of the fields of ``cls``, each as the field is declared."""
    known = {entry.name: entry for entry in fields(cls) if entry.name not in unread}
    for name, entry in known.items():
        if name not in table and entry.default is entry.default_factory is MISSING:
            problems.value(f"{where}{name} is missing")
    out = {}
    for name, value in table.items():
        if name not in known:
            problems.value(f"{where}{name!r} is not known; expected {', '.join(known)}")
            continue
        declared = str(known[name].type).removesuffix(" | None")
        if not _is(value, declared):
            problems.value(f"{where}{name} must be {_WORDS[declared]}, got {value!r}")
        elif name in _CHOICES:
            problems.choice(f"{where}{name}", value, _CHOICES[name])
        elif name == "layout":
            _known_layout(problems, where, value)
        out[name] = tuple(value) if isinstance(value, list) else value
    return out


def _is(value: Any, declared: str) -> bool:
    """Whether a value of TOML is what a field is declared to hold."""
    if declared.startswith("tuple"):
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if declared.startswith("Mapping"):
        return isinstance(value, dict) and ("Any" in declared or all(isinstance(v, str) for v in value.values()))
    return type(value).__name__ == declared and (declared != "int" or value >= 0)


def _check_together(problems: Problems, rules: Iterable[Rule]) -> None:
    seen: dict[str, str] = {}
    for rule in rules:
        if rule.canonical in seen and rule.kind != "buffer":
            problems.value(f"{rule.pattern!r} and {seen[rule.canonical]!r} both stand for {rule.canonical!r}")
        seen[rule.canonical] = rule.pattern
        if rule.pattern.count("*") != rule.canonical.count("*"):
            problems.value(f"{rule.pattern!r} and {rule.canonical!r} must have the same number of *")
    for rule in rules:
        if rule.tied is not None and rule.tied not in seen:
            problems.value(f"{rule.pattern!r} is tied to {rule.tied!r}, which is no name here")


def _check_widths(problems: Problems, family: Family) -> None:
    kinds = {rule.canonical: rule.kind for rule in family.rules}
    for line, words in family.widths.items():
        if line == "config":
            if not _is(words, "Mapping[str, str]"):
                problems.value(f"widths: config must be a table of text, got {words!r}")
        elif line not in kinds:
            problems.value(f"widths: {line!r} is no (canonical) name here")
        elif not isinstance(words, str) or not all(WIDTH.match(word) for word in words.split()):
            problems.value(f"widths: {line!r} must be words such as 'hidden 2*inner', got {words!r}")
        elif len(words.split()) != _WIDTHS_OF.get(kinds[line], len(words.split())):
            problems.value(f"widths: {line!r} is {kinds[line]}, of {_WIDTHS_OF[kinds[line]]} widths, got {words!r}")


def _known_layout(problems: Problems, where: str, name: str) -> None:
    try:
        layouts.get(name)
    except ValueError as error:
        problems.value(f"{where}layout: {error}")
