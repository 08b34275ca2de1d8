"""What a conversion will do, tensor by tensor, before anything is read or written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.convert import _canonical as _neutral, _identify as _choose, families
from maskattn.convert._canonical import Attention, Check, Heads, Neutral
from maskattn.convert._lazy import Lazy
from maskattn.convert._memory import Remembered, recall, recall_heads, recall_prefixes
from maskattn.convert.families import Family, Form
from maskattn.convert.layouts._check import DTYPES
from maskattn.convert.layouts._extras import Step

REST = ("error", "keep", "drop")
BUFFERED = 64 * 2**20
"""Bytes that the tensors in hand may take beside two of the largest; the writer holds some 100 MB more."""


class Move(NamedTuple):
    """One tensor of the target: its name, and the source tensors and operations it is made of."""

    target: str
    array: Lazy

    @property
    def operation(self) -> str:
        """What is done, in words; "copy" where bytes are taken as they are."""
        return " · ".join(self.array.operations) or "copy"


@dataclass(frozen=True)
class Plan:
    """A conversion that can be carried out: everything it will write, and everything there is to say about it.

    Attributes:
      source, target: the forms, in words. evidence: what shows the source's.
      moves: one per tensor of the target. infos: of the source's tensors.
      steps: what is more than moving numbers. exact: whether converting back gives the same bytes.
      dropped: tensors of the source that are not carried over, and why. kept: those carried over as they are, though no
        rule knows them.
      dtype: what floating-point numbers are cast to, None: kept.
      buffers: what was left out, now or before, and can be made again.
      prefixes: what stands before the names of each family that the checkpoint was of.
      layers: the attention layers, in canonical form. checks: what is verified of values before anything is published.
    """

    source: str
    target: str
    evidence: tuple[str, ...]
    moves: tuple[Move, ...]
    infos: Mapping[str, TensorInfo]
    steps: tuple[Step, ...]
    dropped: Mapping[str, str]
    kept: tuple[str, ...]
    dtype: np.dtype[Any] | None
    layers: Mapping[str, Attention]
    checks: tuple[Check, ...]
    forms: tuple[Form, Form]
    buffers: Remembered
    prefixes: Mapping[str, str]

    @property
    def exact(self) -> bool:
        """Whether every number is only moved, and what is left out can be made again."""
        return self.dtype is None and all(step.exact for step in self.steps) and not self.lost

    @property
    def lost(self) -> list[str]:
        """What is left out and cannot be made again."""
        return [name for name in self.dropped if name not in self.buffers.tensors]

    @property
    def outputs(self) -> dict[str, TensorInfo]:
        """Names, shapes and dtypes of the target."""
        return {move.target: TensorInfo(move.array.shape, move.array.dtype) for move in self.moves}

    @property
    def bytes_read(self) -> int:
        """Bytes of the source's tensors that are used."""
        used = {name for move in self.moves for name in move.array.sources}
        return sum(self.infos[name].nbytes for name in used)

    @property
    def bytes_written(self) -> int:
        """Bytes of the target's tensors."""
        return sum(move.array.nbytes for move in self.moves)

    @property
    def peak_memory(self) -> int:
        """An upper estimate of the bytes held at once while it is carried out, the interpreter aside."""
        from maskattn.convert._run import peak

        return peak(self)


def plan(
    infos: Mapping[str, TensorInfo],
    *,
    source: str = "auto",
    target: str | None = None,
    family: str | os.PathLike[str] | Family | None = None,
    config: Mapping[str, Any] | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    dtype: Any = None,
    rest: str = "error",
    scan: bool | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Plan:
    """Plans the conversion of a checkpoint. Reads names, shapes and dtypes, no number.

    Args:
        infos: of every tensor of the source; ``checkpoints.open(path).infos``.
        source: the form it is in: "auto", the name of a family, or of a layout of attention.
        target: the form wanted: a family of the same model, or a layout that any family can be stored with
            (``families.GENERIC``); None: the same.
        family: a family of one's own, by its ``.toml`` file; or the name of one, where several fit.
        config: what a Hugging Face config.json holds: heads, layers, model type.
        num_heads, num_kv_heads: where config does not say and shapes do not show them.
        dtype: floating-point tensors are cast to it; None: kept.
        rest: tensors that no rule knows: "error", "keep" (under their own names) or "drop".
        provenance: what the source says of where it comes from (``Reader.provenance``): heads; tensors that were left
            out of it, which are made again where the target is the family they belong to.
        scan: whether the tensors of all layers are stacked into one, along a new axis; None: as the target usually is.

    Raises:
        ValueError: one error that lists every tensor missing, left over, of the wrong shape, or without a place in the
            target; a form that cannot be told, with the candidates; unknown names.
    """
    if rest not in REST:
        raise ValueError(f"rest must be one of {', '.join(REST)}, got {rest!r}")
    cast = None if dtype is None else np.dtype(dtype)
    if cast is not None and cast not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {cast}")
    config = config or {}
    own = None if family is None else families.get(family)
    found, evidence = _choose.source_form(infos, source, own, config, rest)
    to = _choose.target_form(target, found.form, own, scan, recall_prefixes(provenance or {}))
    wrong = [f"{name}: missing" for name in found.missing]
    if rest == "error":
        wrong += [f"{name}: left over, {found.form.family.name} does not know it" for name in found.left_over]
    if wrong:
        raise _error(wrong, found.form, to, evidence)
    neutral = _neutral.read(found, infos, config, (num_heads, num_kv_heads), recall_heads(provenance or {}))
    return _make(infos, found, neutral, to, evidence, cast, rest, provenance or {})


def _make(
    infos: Mapping[str, TensorInfo],
    found: families.Match,
    neutral: Neutral,
    to: Form,
    evidence: tuple[str, ...],
    cast: np.dtype[Any] | None,
    rest: str,
    provenance: Mapping[str, Any],
) -> Plan:
    kept = found.left_over if rest == "keep" else []
    if rest == "drop":
        neutral.dropped.update({name: "no rule knows it" for name in found.left_over})
    if neutral.problems:
        raise _error(neutral.problems, found.form, to, evidence)
    written = _neutral.write(neutral, to, {name: Lazy.read(name, *infos[name]) for name in kept})
    wrong = list(neutral.problems)
    before = recall(provenance)
    restored = before.restore(written, to)
    outcome = families.match(to, {name: TensorInfo(lazy.shape, lazy.dtype) for name, lazy in written.items()})
    if outcome is not None and not wrong:
        wrong += [f"{name}: {to.family.name} cannot do without it, and the source has none" for name in outcome.missing]
    if wrong:
        raise _error(wrong, found.form, to, evidence)
    moves = tuple(Move(name, _cast(lazy, cast)) for name, lazy in written.items())
    return Plan(
        source=_choose.describe(found.form),
        target=_choose.describe(to),
        evidence=evidence,
        moves=moves,
        infos=infos,
        steps=tuple(neutral.steps.values()),
        dropped=neutral.dropped,
        kept=tuple(kept),
        dtype=cast,
        layers=neutral.layers,
        checks=tuple(neutral.checks),
        forms=(found.form, to),
        buffers=Remembered(found.form.family.name, neutral.buffers) if neutral.buffers or restored else before,
        prefixes=recall_prefixes(provenance) | {found.form.family.name: found.form.prefix},
    )


def back(plan: Plan, config: Mapping[str, Any] | None = None) -> Plan:
    """The plan that undoes ``plan``: from the tensors it writes to those it reads. Casts are not undone."""
    origin, to = plan.forms
    outputs = plan.outputs
    found = families.match(to, outputs, config or {})
    assert found is not None
    heads: dict[str, Heads] = {n: (at.config.num_heads, at.config.kv_heads) for n, at in plan.layers.items()}
    neutral = _neutral.read(found, outputs, {}, (None, None), heads)
    rest = {name: Lazy.read(name, *outputs[name]) for name in plan.kept}
    written = _neutral.write(neutral, origin, rest)
    if neutral.problems:
        raise _error(neutral.problems, to, origin, ())
    plan.buffers.restore(written, origin)
    moves = tuple(Move(name, lazy) for name, lazy in written.items() if name in plan.infos)
    return Plan(
        source=plan.target,
        target=plan.source,
        evidence=(),
        moves=moves,
        infos=outputs,
        steps=tuple(neutral.steps.values()),
        dropped=neutral.dropped,
        kept=plan.kept,
        dtype=None,
        layers=neutral.layers,
        checks=tuple(neutral.checks),
        forms=(to, origin),
        buffers=Remembered(),
        prefixes={},
    )


def in_order(plan: Plan, order: tuple[str, ...]) -> Iterator[Move]:
    """The moves, as near to ``order`` as possible while those that share a source follow each other."""
    by_target = {move.target: move for move in plan.moves}
    users: dict[str, list[Move]] = {}
    for move in plan.moves:
        for name in move.array.sources:
            users.setdefault(name, []).append(move)
    waiting = dict.fromkeys(order)
    while waiting:
        group = [by_target[next(iter(waiting))]]
        for move in group:  # grows while it is walked
            if move.target in waiting:
                del waiting[move.target]
                yield move
                if len(move.array.sources) == 1:
                    group += [other for name in move.array.sources for other in users[name] if other.target in waiting]


def _cast(lazy: Lazy, dtype: np.dtype[Any] | None) -> Lazy:
    if dtype is None or lazy.dtype == dtype or lazy.dtype not in DTYPES:
        return lazy
    return lazy.astype(dtype)


def _error(wrong: list[str], origin: Form, to: Form, evidence: tuple[str, ...]) -> ValueError:
    head = f"the checkpoint cannot be converted from {_choose.describe(origin)} to {_choose.describe(to)}:"
    return ValueError("\n  ".join([head, *wrong, *(f"({line})" for line in evidence)]))
