"""Finding the layout of tensors from their names and shapes, without guessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._check import mismatches

_SHOWN = 3
_REJECTED = 5


@dataclass(frozen=True)
class Candidate:
    """A layout whose names occur.

    Attributes:
        layout: its name. layers: the prefixes of the layers found. evidence: what speaks for it, in words.
        objections: what speaks against it; empty where it fits.
    """

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
    """What was found; iterates over the layouts that fit.

    Attributes:
        candidates: the layouts that fit. rejected: those whose names occur but that do not fit.
    """

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
        """The name of the only layout that fits.

        Raises:
            ValueError: none or several do; with the evidence.
        """
        if len(self.candidates) == 1:
            return self.candidates[0].layout
        nearest = sorted(self.rejected, key=lambda candidate: len(candidate.objections))
        lines = [f"  {candidate}" for candidate in (*self.candidates, *nearest[:_REJECTED])]
        if len(nearest) > _REJECTED:
            lines.append(f"  and {len(nearest) - _REJECTED} more that fit less")
        if self.candidates:
            head = f"{len(self.candidates)} layouts fit these tensors: name the source layout"
        elif self.rejected:
            head = "no layout fits these tensors"
        else:
            head = "no attention layer of a known layout was found among the names of these tensors"
        raise ValueError("\n".join([head, *lines]))


def detect(tensors: Mapping[str, object], config: AttentionConfig | None, layouts: Sequence[Layout]) -> Detection:
    """Judges each of ``layouts``; see ``maskattn.convert.layouts.detect``."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors: expected a mapping of names to arrays, got {type(tensors).__name__}")
    fitting: list[tuple[Layout, Candidate]] = []
    rejected: list[Candidate] = []
    for layout in layouts:
        layers = {prefix: owned for prefix, owned in layout.match(tensors).items() if layout.lives_at(prefix)}
        if not layers:
            continue
        objections = _all_objections(layout, layers, tensors, config)
        candidate = Candidate(layout.name, tuple(layers), _evidence(layers, config, not objections), tuple(objections))
        if objections:
            rejected.append(candidate)
        elif config is not None and (at := _twin(layout, candidate, fitting, config)) is not None:
            first, other = fitting[at]
            fitting[at] = (
                first,
                replace(other, evidence=(*other.evidence, f"{layout.name} is the same with this config")),
            )
        else:
            fitting.append((layout, candidate))
    return Detection(tuple(candidate for _, candidate in fitting), tuple(rejected))


def _all_objections(
    layout: Layout,
    layers: Mapping[str, Mapping[str, str]],
    tensors: Mapping[str, object],
    config: AttentionConfig | None,
) -> list[str]:
    objections: list[str] = []
    seen: dict[Any, list[str]] = {}  # most layers of a model are alike
    for prefix, owned in layers.items():
        layer = {name: tensors[full] for name, full in owned.items()}
        key = tuple((name, getattr(x, "shape", None), getattr(x, "dtype", None)) for name, x in layer.items())
        if key not in seen:
            seen[key] = _objections(layout, layer, config)
        whole = prefix.rstrip("./") or "the layer"
        objections += [(whole if text.startswith(":") else prefix) + text for text in seen[key]]
    return objections


def _objections(layout: Layout, layer: Mapping[str, object], config: AttentionConfig | None) -> list[str]:
    if config is not None:
        return mismatches(layout, layer, config)
    not_arrays = [name for name, array in layer.items() if not hasattr(array, "shape")]
    if not_arrays:
        return [f"{name}: not an array" for name in not_arrays]
    nearest: list[str] | None = None
    for heads in _head_counts(layout, layer):
        try:
            objections = mismatches(layout, layer, layout.infer(layer, heads, None))
        except (TypeError, ValueError) as error:
            objections = [f": {error}"]  # of the whole layer
        if not objections:
            return []
        nearest = objections if nearest is None or len(objections) < len(nearest) else nearest
    return nearest or []


def _head_counts(layout: Layout, layer: Mapping[str, Any]) -> list[int | None]:
    """Heads that rows may be made of, where the layout does not store their number: shapes need only admit one."""
    if layout.stores_heads:
        return [None]
    for entry in layout.projections:
        if entry.roles == ("out",) and entry.part == "kernel" and len(getattr(layer.get(entry.name), "shape", ())) == 2:
            inside = layer[entry.name].shape[0 if entry.form == "conv1d" else 1]
            return [heads for heads in range(1, inside + 1) if inside % heads == 0]
    return [1]


def _twin(
    layout: Layout, candidate: Candidate, fitting: Sequence[tuple[Layout, Candidate]], config: AttentionConfig
) -> int | None:
    """Which of ``fitting`` reads the same tensors into the same places, so that nothing is left to be told apart."""
    table = _table(layout, config)
    for at, (other, earlier) in enumerate(fitting):
        if earlier.layers == candidate.layers and _table(other, config) == table:
            return at
    return None


def _table(layout: Layout, config: AttentionConfig) -> Any:
    # With one key/value head, (K, G + 2, D) is query, key, value in blocks.
    stored = {replace(s, order="blocks") if config.num_kv_heads == 1 else s for s in layout.stored(config)}
    extras = {(extra.name, extra.canonical) for extra in layout.extras}
    methods = type(layout).to_canonical, type(layout).from_canonical
    return stored, extras, layout.interleaved, layout.key_bias, methods


def _evidence(layers: Mapping[str, Mapping[str, str]], config: AttentionConfig | None, fits: bool) -> tuple[str, ...]:
    shown = [repr(prefix) for prefix in list(layers)[:_SHOWN]]
    more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    where = f"{len(layers)} layer{'s' if len(layers) > 1 else ''} under the prefix {', '.join(shown)}{more}"
    if not fits:
        return (where,)
    judged = "shapes agree with each other" if config is None else "shapes are those of the config"
    return (where, "every name is accounted for", judged)
