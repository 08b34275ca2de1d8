"""Families of Hugging Face's models, made of the rows of `maskattn.models`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.config_json import HEADS, KV_HEADS
from maskattn.convert.families._family import Family, Rule
from maskattn.convert.families._gathered import Gathered, moved
from maskattn.convert.families._names import base_of, canonical, model_of, table, types_of
from maskattn.convert.families._sample import SAMPLE, models, own_type, sized
from maskattn.layer.from_hf import Every, Row, When
from maskattn.models import ROWS
from maskattn.models.build_tasks import HEADS as TASK_HEADS, TASKS
from maskattn.models.heads import Vocabulary

#: Layers of heads that no row has.
_FURTHER = ("cls.seq_relationship", "multiple_choice_head.summary")
#: Modules that a family may have beside those of the row.
_BESIDE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "hf-gpt2": {
        "h.*.ln_cross_attn": {"kind": "norm"},
        "h.*.crossattention": {"kind": "attention", "layout": "hf-gpt2-cross", "heads": HEADS, "kv_heads": KV_HEADS},
    },
    **{name: {"decoder.0": {"kind": "conv", "prefixed": False}} for name in ("hf-vit", "hf-swin")},
    "hf-swinv2": {
        "decoder.0": {"kind": "conv", "prefixed": False},
        "embeddings.position_embeddings": {"kind": "raw"},
    },
    "hf-t5": {"decoder.block.*.layer.1.EncDecAttention.relative_attention_bias": {"kind": "embedding", "sparse": True}},
}
_COPIES = {f"{stack}.embed_tokens": {"kind": "embedding"} for stack in ("encoder", "decoder")}
"""The table of tokens again, in files of models of two stacks."""
_WEIGHT_NORM = "parametrizations.weight.original"
_SMALL = 300
"""Sizes of the sample up to here may be others' by chance."""


def made(name: str, config: Mapping[str, Any]) -> Family:
    """The family of that name, as far as a configuration (which may be empty) says what it holds."""
    (types, form), base = table()[name], base_of(name)
    gathered = Gathered(form, base)
    for each in types:
        for every, needed in models(base, each, config):
            gathered.add(every, ROWS[each], needed=False)
            gathered.add(needed, ROWS[each], needed=True)
    rules = {rule.pattern: rule for rule in gathered.rules()}
    for pattern in [pattern for pattern in rules if _WEIGHT_NORM in pattern]:  # called otherwise before PyTorch 2
        older = pattern.replace(f"{_WEIGHT_NORM}0", "weight_g").replace(f"{_WEIGHT_NORM}1", "weight_v")
        rules[pattern] = dataclasses.replace(rules[pattern], required=False)
        rules[older] = dataclasses.replace(rules[pattern], pattern=older, canonical=older)
    embeddings = {rule.canonical for rule in rules.values() if rule.kind == "embedding"}
    for rule in (rule for each in types for rule in _heads(ROWS[each], base, embeddings)):
        for pattern in dict.fromkeys((moved(rule.pattern, form), rule.pattern)):
            own = rule.canonical if pattern == rule.pattern else pattern
            rules.setdefault(pattern, dataclasses.replace(rule, pattern=pattern, canonical=own))
    beside = {**_BESIDE.get(base, {}), **(_COPIES if ROWS[types[0]].get("kind") == "two" else {})}
    for pattern, line in beside.items():
        rules.setdefault(pattern, Rule(pattern, canonical=pattern, required=False, **line))
    prefixes = (*(str(ROWS[each].get("prefix", "")) for each in types), "", "transformer.")
    family = Family(
        name,
        model_of(name),
        "torch",
        next((layouts.get(rule.layout).name for rule in rules.values() if rule.kind == "attention"), ""),
        tuple(rules.values()),
        f"Hugging Face's {', '.join(types)}",
        tuple(dict.fromkeys(prefixes)),
        types_of(name),
        any("LayerNorm" in rule.pattern for rule in rules.values()),
        layers=gathered.layers,
        unread=True,
    )
    return family if name.startswith("hf-") else _in_flax(family)


def _in_flax(family: Family) -> Family:
    """The same model in Flax: the same names, joined by slashes."""
    own = {"hf-bert": "flax-bert", "hf-gpt2": "flax-gpt2", "hf-gpt2-cross": "flax-gpt2-cross"}

    def changed(rule: Rule) -> Rule:
        layout = own.get(str(rule.layout), rule.layout)
        return dataclasses.replace(rule, pattern=rule.pattern.replace(".", "/"), layout=layout)

    return dataclasses.replace(
        family,
        style="flax",
        layout=own[family.layout],
        rules=tuple(changed(rule) for rule in family.rules if rule.kind != "buffer"),
        prefixes=tuple(prefix.replace(".", "/") for prefix in family.prefixes),
        layers={pattern.replace(".", "/"): key for pattern, key in family.layers.items()},
        old_norms=False,
        separator="/",
    )


class Sizes(NamedTuple):
    """What a configuration says of the tensors of a model, by the names that all forms of it share.

    Attributes:
        shapes: as Flax has them, by lines. attention: of its layers. needed: what may not be missing.
        told: what numbers are, and where the configuration says so; where it says them ``whole``, those of shapes are
            the model's; else they stand for what must be equal.
    """

    shapes: Mapping[str, tuple[int, ...]]
    attention: Mapping[str, AttentionConfig]
    needed: frozenset[str]
    told: Mapping[int, tuple[int, str]]
    whole: bool

    def line(self, name: str) -> str:
        """What stands for a tensor or a layer: where not all is told, for those of all layers."""
        return name if self.whole else re.sub(r"\d+", "#", name)


def sizes(name: str, config: Mapping[str, Any]) -> Sizes:
    """The sizes of a model of a family, as far as a configuration says them; 0 where layers or types differ."""
    types, own = table()[name][0], own_type(config)
    one = len(types) == 1 and not own and not {"hidden_size", "embed_dim"}.isdisjoint(config)
    found = [_sizes(name, each, config, whole=own == each or one) for each in ([own] if own in types else types)]
    shapes: dict[str, tuple[int, ...]] = {}
    for each in found:
        for full, shape in each.shapes.items():
            pairs = zip(shapes.get(each.line(full), shape), shape, strict=False)
            shapes[each.line(full)] = tuple(before if before == size else 0 for before, size in pairs)
    return found[0]._replace(shapes=shapes)


def _sizes(name: str, model_type: str, config: Mapping[str, Any], *, whole: bool) -> Sizes:
    form, base = table()[name][1], base_of(name)
    both, headed, whole = sized(base, model_type, config, whole=whole)
    every, needed = Gathered(form, base), Gathered(form, base)
    every.add(both[0], ROWS[model_type], needed=False)
    needed.add(both[1], ROWS[model_type], needed=True)
    head = getattr(headed, "head", None)
    for path, leaf in head.leaves() if isinstance(head, Vocabulary) else ():
        for part, tensor in leaf.tensors().items():
            every.shapes.setdefault(f"{path}.{tensor.flax}" if part else path, tensor.flax_shape)
    stand = {key: value for key, value in SAMPLE.items() if type(value) is int and value > _SMALL}
    named = {*stand, "head_dim", "patch_size"}
    said = {key: value for key, value in config.items() if type(value) is int and key in named}
    told = {value: (value, f"{key} of the configuration") for key, value in reversed(said.items())}
    if not whole:
        told = {value: (0, "") for value in stand.values()}
        told |= {value: (said[key], f"{key} of the configuration") for key, value in stand.items() if key in said}
    must = (needed.shapes.keys() - needed.computed) | needed.attention.keys()
    must = {full for full in must if _WEIGHT_NORM not in full}
    return Sizes(every.shapes, every.attention, frozenset(must), told, whole)


def _heads(row: Row, base: str, embeddings: Container[str]) -> Iterator[Rule]:
    """What a model may have behind its blocks."""

    def line(name: str, kind: str = "dense", **more: Any) -> Rule:
        common = {"bias": "maybe", "required": False, "prefixed": False}
        return Rule(name, kind, **{"canonical": canonical(base, name), **common, **more})

    tables = [name for name in _either(row.get("table")) if name in embeddings]
    for head in _either(row.get("head")):
        named = {"project": head} if isinstance(head, str) else head
        yield line(named["project"], tied=tables[0] if tables else None)
        for key, kind in (("dense", "dense"), ("norm", "norm"), ("bias", "raw")):
            for name in _either(named.get(key)):
                if name != f"{named['project']}.bias":
                    yield line(name, kind, bias="yes" if kind == "raw" else "maybe")
    for key in TASKS.values() if row.get("kind", "two") == "two" else ():
        for given in _either(row.get(key, TASK_HEADS.get(key))):
            yield from map(line, given["layers"])
            yield from (line(name, "norm") for name in _either(given.get("norm")))
    classes: Any = row.get("classes", ())
    for name in classes[-1] if base == "hf-deit" else classes[0] if classes else ():
        yield line(name, required=base == "hf-deit")
    for name in _either(row.get("codes")):
        yield line(name)
        yield line(str(row["codes_norm"]), "norm", canonical=f"codes.{row['codes_norm']}")
    if row.get("kind") == "towers":
        vision: Any = row["vision"]
        yield from _heads(vision[0], base, embeddings)
    if row.get("kind", "two") == "two":
        yield from map(line, _FURTHER)


def _either(spec: object) -> Iterator[Any]:
    """What a value of a row may be."""
    if isinstance(spec, When):
        yield from _either(spec.then)
        yield from _either(spec.otherwise)
    elif isinstance(spec, Every):
        yield from (*_either(spec.encoder), *_either(spec.decoder))
    elif spec is not None:
        yield spec
