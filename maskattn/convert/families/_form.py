"""A family in one of the ways its tensors can be stored: its own, or its module names with another attention layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from maskattn.convert import layouts
from maskattn.convert.families._family import Family, Rule
from maskattn.convert.layouts import EXTRAS
from maskattn.models.files import UNREAD

GENERIC = {"flax-nnx": "flax", "flax-linen": "flax", "maskattn-torch": "torch", "torch-mha": "torch"}
"""Layouts that any family can be stored with, and the style its other modules then have."""

LEAVES = {
    "torch": {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"},
    "flax": {"kernel": "kernel", "scale": "scale", "embedding": "embedding", "bias": "bias"},
}

OLD_NORMS = {"scale": "gamma", "bias": "beta"}

_STAR = re.compile(r"\*(\+\d+)?")


@dataclass(frozen=True)
class Form:
    """How a checkpoint of `family` is stored.

    `layout` replaces the family's own attention layout, and with it the style of the other modules; None: its own.
    `scan`: the tensors of all layers are stacked into one. `prefix` stands before the names of the body. `beside`: what
    has no place in an attention layer may stand beside it, under its canonical name, where the layout is generic.
    `outer` stands before all names, of head and body: what a wrapper put there. `old_norms`: the parts of norms are
    called gamma and beta, as they were before 2019.
    """

    family: Family
    layout: str | None = None
    scan: bool = False
    prefix: str = ""
    beside: bool = True
    outer: str = ""
    old_norms: bool = False

    def __str__(self) -> str:
        whole = self.family.name if self.layout is None else f"{self.family.name} as {self.layout}"
        text = (self.layout or self.family.layout) if self.attention_only else whole
        return text + (", layers stacked" if self.scan else "")

    @property
    def attention_only(self) -> bool:
        """Whether only attention layers are known of the checkpoint."""
        return self.family.model == ""

    @property
    def style(self) -> str:
        """ "torch" or "flax"."""
        return GENERIC.get(self.layout or "", self.family.style)

    @property
    def separator(self) -> str:
        """What joins the names of modules."""
        return self.family.separator if self.layout is None else layouts.get(self.layout).separator

    @property
    def scan_axis(self) -> int:
        """Which axis of a stacked tensor counts layers."""
        return self.family.scan_axis if self.layout is None else 0

    def layout_of(self, rule: Rule) -> layouts.Layout:
        """The layout of the attention layers of ``rule``."""
        return layouts.get(rule.layout if self.layout is None else self.layout)

    def stacked(self, rule: Rule) -> bool:
        """Whether one tensor holds those of all layers."""
        return self.scan and "*" in rule.pattern and not rule.sparse

    def transposed(self, rule: Rule) -> bool:
        """Whether a dense matrix is stored the other way round than Flax has it."""
        return (self.style == "torch") != (rule.transposed and self.layout is None)

    def as_flax(self, rule: Rule, part: str, array: Any) -> Any:
        """A module's part as Flax has it: matrices [in, out], convolutions [*window, in, out]."""
        if rule.kind == "dense" and part == "kernel" and self.transposed(rule):
            return array.T
        if rule.kind == "conv" and part == "kernel" and self.style == "torch" and array.ndim > 2:
            return array.transpose(*range(2, array.ndim), 1, 0)
        return array

    def from_flax(self, rule: Rule, part: str, array: Any) -> Any:
        """The inverse of ``as_flax``."""
        if rule.kind == "conv" and part == "kernel" and self.style == "torch" and array.ndim > 2:
            return array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
        return self.as_flax(rule, part, array)

    def module(self, rule: Rule, indices: Sequence[int]) -> str:
        """The name of a module, or of a raw tensor. ``indices``: those of its layer; stacked ones have no last."""
        given = iter(indices)
        return _STAR.sub(lambda star: str(next(given) + int(star[1] or 0)), self._patterns[rule])

    def name(self, rule: Rule, indices: Sequence[int], part: str) -> str:
        """The name of a tensor: of a module's part, or of what the layout of an attention layer calls so."""
        module = self.module(rule, indices)
        if rule.kind == "attention":
            return module + self.layout_of(rule).separator + part if module else part
        return module + self._leaf(rule, part)

    def _leaf(self, rule: Rule, part: str) -> str:
        """The name of a module's part, with the separator before it; empty for a tensor that is no module."""
        if self.old_norms and rule in self._old:
            return self.separator + OLD_NORMS[part]
        return self.separator + LEAVES[self.style][part] if part else ""

    @cached_property
    def _old(self) -> frozenset[Rule]:
        """The norms that had older names: those called LayerNorm, where any are."""
        norms = [rule for rule in self.family.rules if rule.kind == "norm"]
        return frozenset([rule for rule in norms if "LayerNorm" in rule.pattern] or norms)

    def unread(self, name: str) -> bool:
        """Whether a tensor, which no rule knows, is one that no model reads."""
        return self.family.unread and any(pattern.search(name.removeprefix(self.outer)) for pattern in UNREAD)

    def place(self, canonical: str, *, attention: bool) -> tuple[Rule, tuple[int, ...], str] | None:
        """Where a tensor or an attention layer goes, by its canonical name; as ``find``."""
        plain, patterns = self._places
        if (canonical, attention) in plain:
            rule, part = plain[canonical, attention]
            return rule, (), part
        for rule, part, pattern in patterns:
            match = pattern.fullmatch(canonical) if (rule.kind == "attention") == attention else None
            if match is not None:
                return rule, tuple(int(number) for number in match.groups()), part
        return None

    @cached_property
    def _places(self) -> tuple[dict[tuple[str, bool], tuple[Rule, str]], list[tuple[Rule, str, re.Pattern[str]]]]:
        """The canonical names of this form, those without a layer's number apart: there may be thousands."""
        plain: dict[tuple[str, bool], tuple[Rule, str]] = {}
        patterns: list[tuple[Rule, str, re.Pattern[str]]] = []
        stored = [(rule, part) for rule in self.family.rules if rule.kind != "buffer" for part in rule.parts]
        for rule, part in stored:
            name = rule.canonical + (f".{part}" if part else "")
            if "*" in name:
                pattern = r"(\d+)".join(re.escape(text) for text in name.split("*"))
                patterns.append((rule, part, re.compile(pattern)))
            else:
                plain.setdefault((name, rule.kind == "attention"), (rule, part))
        return plain, patterns

    @cached_property
    def plain_names(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """The names of this form, `#` for numbers: those of tensors, and what those of attention begin with."""
        whole: set[str] = set()
        within: list[str] = []
        for rule, pattern in self._patterns.items():
            plain = re.sub(r"\d+", "#", _STAR.sub("#", pattern))
            if rule.kind == "attention":
                within.append(plain + self.layout_of(rule).separator if plain else "")
            else:
                whole.update(plain + self._leaf(rule, part) for part in rule.parts)
        return frozenset(whole), tuple(within)

    def find(self, name: str) -> tuple[Rule, tuple[int, ...], str] | None:
        """What a tensor is: its rule, the indices of its layer, and its part (for attention: its name in the layer)."""
        for rule, expression in self._expressions:
            match = expression.match(name)
            if match is None:
                continue
            *numbers, rest = match.groups()
            part, indices = self._part(rule, rest), _indices(self._patterns[rule], numbers)
            if part is not None and min(indices, default=0) >= 0:
                return rule, indices, part
        return None

    def _part(self, rule: Rule, rest: str) -> str | None:
        if rule.kind == "attention":
            separator = self.layout_of(rule).separator if self._patterns[rule] else ""
            local = rest.removeprefix(separator)
            return local if rest.startswith(separator) and local in self._within[rule] else None
        for part in rule.parts:
            if rest == self._leaf(rule, part):
                return part
        return None

    @cached_property
    def _within(self) -> dict[Rule, frozenset[str]]:
        """The names that a tensor of an attention layer can have in it."""
        known: dict[Rule, frozenset[str]] = {}
        for rule in self.family.rules:
            if rule.kind == "attention":
                layout = self.layout_of(rule)
                names = {part.name for group in (layout.projections, layout.extras, layout.buffers) for part in group}
                if self.layout in GENERIC:  # and what has no place in the layer
                    names |= {name.replace(".", layout.separator) for name in EXTRAS}
                known[rule] = frozenset(names)
        return known

    @cached_property
    def _patterns(self) -> dict[Rule, str]:
        return {rule: self._pattern(rule) for rule in self.family.rules}

    def _pattern(self, rule: Rule) -> str:
        pattern = (self.prefix if rule.prefixed else "") + rule.pattern
        if self.separator != self.family.separator:
            pattern = pattern.replace(self.family.separator, self.separator)
        if self.stacked(rule):
            start, end = list(_STAR.finditer(pattern))[-1].span()
            pattern = pattern[:start].rstrip("._/-") + pattern[end:]
        return self.outer + pattern

    @cached_property
    def _expressions(self) -> list[tuple[Rule, re.Pattern[str]]]:
        """Attention last: what lies within a layer's prefix and is named by no other rule belongs to the layer."""
        rules = sorted(self.family.rules, key=lambda rule: rule.kind == "attention")
        tail = r"(|[./].+)\Z"
        return [
            (rule, re.compile(_expression(p) + (tail if p else r"(.+)\Z")))
            for rule in rules
            for p in [self._patterns[rule]]
        ]


def _expression(pattern: str) -> str:
    """A regular expression for ``pattern``, with one group for each index."""
    return r"(0|[1-9]\d{0,5})".join(re.escape(text) for text in _STAR.sub("\0", pattern).split("\0"))


def _indices(pattern: str, numbers: Sequence[str]) -> tuple[int, ...]:
    shifts = [int(star[1] or 0) for star in _STAR.finditer(pattern)]
    return tuple(int(number) - shift for number, shift in zip(numbers, shifts, strict=True))
