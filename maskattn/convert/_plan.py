"""What a conversion will do, tensor by tensor, before anything is read or written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.config import AttentionConfig
from maskattn.convert import _memory, _provenance, families
from maskattn.convert._canonical import ConfigOf, made, read, write
from maskattn.convert._identify import identify, target_form
from maskattn.convert._layer import sizes
from maskattn.convert._match import match
from maskattn.convert._model import Layer, Model
from maskattn.convert.families import Family, Form
from maskattn.convert.layouts import DTYPES, Step
from maskattn.convert.lazy import Lazy, Read, constant
from maskattn.typing import NumPyArray as Array, NumPyDType

REST = ("error", "keep", "drop")


class Move(NamedTuple):
    """One tensor of the target.

    Attributes:
      target: its name. array: the source tensors and operations it is made of.
    """

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
      forms: the source's and the target's. evidence: what shows the source's.
      moves: one per tensor of the target. infos: of the source's tensors.
      steps: what is more than moving numbers. exact: whether converting back gives the same bytes.
      dropped: tensors of the source that are not carried over, and why. kept: those carried over as they are, though no
        rule knows them.
      dtype: what floating-point numbers are cast to, None: kept.
      layers: the attention layers, in canonical form. checks: what is verified of values before anything is published.
      buffers: what was left out, now or before, and can be made again, by family.
      prefixes: what stands before the names of each family that the checkpoint was of.
    """

    forms: tuple[Form, Form]
    evidence: tuple[str, ...]
    moves: tuple[Move, ...]
    infos: Mapping[str, TensorInfo]
    steps: tuple[Step, ...]
    dropped: Mapping[str, str]
    kept: tuple[str, ...]
    dtype: NumPyDType | None
    layers: Mapping[str, Layer]
    checks: tuple[Callable[[Read], None], ...]
    buffers: _provenance.Buffers
    prefixes: Mapping[str, str]

    @property
    def source(self) -> str:
        """The source's form, in words."""
        return str(self.forms[0])

    @property
    def target(self) -> str:
        """The target's form, in words."""
        return str(self.forms[1])

    @property
    def exact(self) -> bool:
        """Whether every number is only moved, and what is left out can be made again."""
        return self.dtype is None and all(step.exact for step in self.steps) and not self.lost

    @property
    def lost(self) -> list[str]:
        """What is left out and cannot be made again."""
        again = {name for infos in self.buffers.values() for name in infos}
        return [name for name in self.dropped if name not in again]

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
        return _memory.peak((move.array for move in self.moves), self.infos)

    def check(self, read: Read) -> None:
        """Reads what must be checked before anything is published; ``read`` gives a source's tensor by its name.

        Raises:
            ValueError: one error that lists what is not as planned.
        """
        reasons: list[str] = []
        for check in self.checks:
            try:
                check(read)
            except ValueError as error:
                reasons += str(error).splitlines()
        refuse(reasons, self.forms, self.evidence)

    def evaluate(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """What carrying it out on ``tensors`` gives, in memory: new C-contiguous arrays. ValueError as ``check``."""
        self.check(tensors.__getitem__)
        return {m.target: np.array(m.array.evaluate(tensors.__getitem__), order="C", copy=True) for m in self.moves}


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
        FileNotFoundError: ``family`` is no file.
    """
    if rest not in REST:
        raise ValueError(f"rest must be one of {', '.join(REST)}, got {rest!r}")
    cast = None if dtype is None else np.dtype(dtype)
    if cast is not None and cast not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {cast}")
    model_config, provenance = config or {}, provenance or {}
    own, prefixes = None if family is None else families.get(family), _provenance.prefixes(provenance)
    stored = identify(infos, source, own, model_config)
    to = target_form(target, stored.form, own, scan, prefixes)
    heads, before = _provenance.heads(provenance), _provenance.buffers(provenance)

    def sizes_of(key: str, layer: Layer) -> AttentionConfig:
        return sizes(layer, model_config, (num_heads, num_kv_heads), heads.get(key, (None, None)))

    planned = assemble(stored, to, sizes_of, infos, rest=rest, dtype=cast, before=before)
    return replace(planned, prefixes=prefixes | {stored.form.family.name: stored.form.prefix})


def assemble(
    source: Model,
    to: Form,
    sizes_of: ConfigOf,
    infos: Mapping[str, TensorInfo],
    *,
    rest: str = "error",
    dtype: NumPyDType | None = None,
    before: _provenance.Buffers | None = None,
) -> Plan:
    """The plan of every conversion: what was found, through the canonical model, to the form ``to``.

    ``before``: what was left out on the way here, by family.
    """
    source.reasons += [f"{name}: missing" for name in source.missing]
    model = read(source, sizes_of)
    if rest == "error":
        why = f", {source.form.family.name} does not know it"
        why = ": it lies outside every attention layer" if source.form.attention_only else why
        model.reasons += [f"{name}: left over{why}" for name in source.left_over]
    if rest == "drop":
        model.dropped.update(dict.fromkeys(source.left_over, "no rule knows it"))
    written = write(model, to)
    kept = source.left_over if rest == "keep" else []
    for name in kept:
        if name in written:
            model.reasons.append(f"{name}: the name of a tensor that is kept is also the name of a converted one")
        written[name] = Lazy.read(name, *infos[name])
    again = _made_again(before or {}, to, written)
    if not model.reasons and not to.attention_only:
        stored = match(to, written)
        lacks = f"{to.family.name} cannot do without it, and the source has none"
        model.reasons += [f"{name}: {lacks}" for name in stored.missing] if stored else []
    refuse(model.reasons, (source.form, to), source.evidence)
    left_out = {n: TensorInfo(lazy.shape, lazy.dtype) for n, (rule, lazy) in model.buffers.items() if rule.maker}
    return Plan(
        forms=(source.form, to),
        evidence=source.evidence,
        moves=tuple(Move(name, _cast(name, lazy, dtype)) for name, lazy in written.items()),
        infos=infos,
        steps=tuple(model.steps.values()),
        dropped=model.dropped,
        kept=tuple(kept),
        dtype=dtype,
        layers=model.layers,
        checks=tuple(model.checks),
        buffers={source.form.family.name: left_out} if left_out or again else before or {},
        prefixes={},
    )


def back(plan: Plan) -> Plan:
    """The plan that undoes ``plan``: from the tensors it writes to those it reads. Casts are not undone."""
    origin, to = plan.forms
    outputs = plan.outputs
    written = match(to, outputs)
    assert written is not None
    undo = assemble(
        written, origin, lambda key, layer: plan.layers[key].config, outputs, rest="keep", before=plan.buffers
    )
    return replace(undo, evidence=(), moves=tuple(move for move in undo.moves if move.target in plan.infos))


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


def _made_again(before: _provenance.Buffers, to: Form, written: dict[str, Lazy]) -> bool:
    """Adds what was left out of this family and is missing; whether this is the form it belongs to."""
    infos = before.get(to.family.name, {}) if to.layout is None else {}
    for name, (shape, dtype) in infos.items():
        place = to.find(name)
        if place is not None and place[0].kind == "buffer":
            written.setdefault(name, constant(made(shape, dtype)))
    return bool(infos)


def _cast(name: str, lazy: Lazy, dtype: NumPyDType | None) -> Lazy:
    """``lazy`` in ``dtype``. A finite number that becomes infinite is damage, not rounding: a ValueError then."""
    if dtype is None or lazy.dtype == dtype or lazy.dtype not in DTYPES:
        return lazy

    def narrow(array: Array) -> Array:
        with np.errstate(over="ignore"):
            out = array.astype(dtype)
        lost = 0 if np.isfinite(out).all() else int(np.isinf(out).sum()) - int(np.isinf(array).sum())
        if lost:
            raise ValueError(f"{name}: {lost} finite numbers are too large for {dtype}")
        return out

    return lazy.changed(narrow, f"cast to {dtype}", dtype)


def refuse(reasons: list[str], forms: tuple[Form, Form], evidence: tuple[str, ...] = ()) -> None:
    """One ValueError for all of ``reasons``, if there are any."""
    if reasons:
        head = f"{'the checkpoint' if evidence else 'tensors'} cannot be converted from {forms[0]} to {forms[1]}:"
        raise ValueError("\n  ".join([head, *dict.fromkeys(reasons), *(f"({line})" for line in evidence)]))
