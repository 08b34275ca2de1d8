"""Finding the layout of tensors from their names and shapes, without guessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskattn.config import AttentionConfig
from maskattn.layouts._base import Layout
from maskattn.layouts._check import problems

_SHOWN = 3


@dataclass(frozen=True)
class Candidate:
    """A layout whose names occur. ``objections`` says what speaks against it; empty where it fits."""

    layout: str
    layers: tuple[str, ...]
    evidence: tuple[str, ...]
    objections: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.layout}: {'; '.join(self.evidence)}"
        if not self.objections:
            return text
        more = len(self.objections) - _SHOWN
        return text + "; but " + "; ".join(self.objections[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Detection:
    """The layouts that fit, and those whose names occur but that do not fit. Iterates over those that fit."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Candidate, ...] = ()

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> Candidate:
        return self.candidates[index]

    @property
    def layout(self) -> str:
        """The name of the only layout that fits; ValueError with the evidence where none or several do."""
        if len(self.candidates) == 1:
            return self.candidates[0].layout
        lines = [f"  {candidate}" for candidate in self.candidates + self.rejected]
        if self.candidates:
            head = f"{len(self.candidates)} layouts fit these tensors: name the source layout"
        elif self.rejected:
            head = "no layout fits these tensors"
        else:
            head = "no attention layer of a known layout was found among the names of these tensors"
        raise ValueError("\n".join([head, *lines]))


def detect(tensors: Mapping[str, Any], config: AttentionConfig | None, layouts: Sequence[Layout]) -> Detection:
    """Judges each of ``layouts``; see ``maskattn.layouts.detect``."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors: expected a mapping of names to arrays, got {type(tensors).__name__}")
    fitting: list[Candidate] = []
    rejected: list[Candidate] = []
    for layout in layouts:
        layers = layout.match(tensors)
        if not layers:
            continue
        objections: list[str] = []
        for prefix, owned in layers.items():
            objections += _objections(layout, {name: tensors[full] for name, full in owned.items()}, config, prefix)
        candidate = Candidate(layout.name, tuple(layers), _evidence(layers, config, not objections), tuple(objections))
        (rejected if objections else fitting).append(candidate)
    return Detection(tuple(fitting), tuple(rejected))


def _objections(layout: Layout, layer: Mapping[str, Any], config: AttentionConfig | None, prefix: str) -> list[str]:
    if config is None:
        not_arrays = [name for name, array in layer.items() if not hasattr(array, "shape")]
        if not_arrays:
            return [f"{prefix}{name}: not an array" for name in not_arrays]
        try:
            # How many heads rows are made of is not stored; with one head every other relation can still be checked.
            config = layout.infer(layer, None if layout.stores_heads else 1, None)
        except (TypeError, ValueError) as error:
            return [f"{prefix or 'the layer'}: {error}"]
    return problems(layout, layer, config, prefix)


def _evidence(layers: Mapping[str, Mapping[str, str]], config: AttentionConfig | None, fits: bool) -> tuple[str, ...]:
    shown = [repr(prefix) for prefix in list(layers)[:_SHOWN]]
    more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    found = f"{len(layers)} layer{'s' if len(layers) > 1 else ''} under the prefix {', '.join(shown)}{more}"
    if not fits:
        return (found,)
    judged = "shapes agree with each other" if config is None else "shapes are those of the config"
    return (found, "every name is accounted for", judged)
