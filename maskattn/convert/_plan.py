"""What a conversion will do, tensor by tensor, before anything is read or written."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.config import AttentionConfig
from maskattn.convert import _hints, _identity, _memory, _provenance, _tables, _widths, config_json, families
from maskattn.convert._canonical import ConfigOf, read, write
from maskattn.convert._identify import identify
from maskattn.convert._identity import About
from maskattn.convert._layer import sizes
from maskattn.convert._match import match
from maskattn.convert._model import Layer, Model
from maskattn.convert._target import against, bind, target_form, unstackable
from maskattn.convert._ties import Ties, headless
from maskattn.convert.families import Family, Form
from maskattn.convert.layouts import DTYPES, Step
from maskattn.convert.lazy import Lazy, Read
from maskattn.typing import NumPyArray as Array, NumPyDType

REST = ("error", "keep", "drop")
_LISTED = 14
"""Reasons that a refusal lists: it has 20 lines at most."""


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
      notes: what a person should know, warnings among it. shared: tensors that are left out because they are the
        embedding, and are made again of it. tables: those left out whose bytes are kept with what the target says.
      record: what else the target will say of itself, for the way back: plain data.
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
    notes: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

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
        again = {name for infos in self.buffers.values() for name in infos} | {*self.shared, *self.tables}
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
    strip_prefix: str = "",
    force: bool = False,
) -> Plan:
    """Plans the conversion of a checkpoint. Reads names, shapes and dtypes, no number.

    Args:
        infos: of every tensor of the source; ``checkpoints.open(path).infos``.
        source: the form it is in: "auto", the name of a family, or of a layout of attention.
        target: the form wanted: a family of the same model, or a layout that any family can be stored with
            (``families.GENERIC``); None: the form of the first source where ``provenance`` says it, otherwise the same.
        family: a family of one's own, by its ``.toml`` file; or the name of one, where several fit.
        config: what a Hugging Face config.json holds: heads, layers, widths, and the model type, which binds: names of
            another family are refused unless ``source`` names it.
        num_heads, num_kv_heads: where config does not say and shapes do not show them.
        dtype: floating-point tensors are cast to it; None: kept.
        rest: tensors that no rule knows: "error", "keep" (under their own names) or "drop".
        provenance: what the source says of where it comes from (``Reader.provenance``): its form, which binds; heads;
            tensors that were left out of it, which are made again where the target is the family they belong to.
        strip_prefix: what stands before the names and is no part of the model, such as ``"module."``; "auto": what is
            found to hide a family's names.
        force: reads a converted file as another form than it says.
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
    provenance = provenance or {}
    model_config = config_json.as_hugging_face(config or _provenance.config(provenance))
    _hints.refuse_what_is_no_model(infos, model_config)
    who, own = _identity.said(config or model_config, provenance), None if family is None else families.get(family)
    about = About(
        config=model_config,
        said=who,
        recorded=_provenance.recorded(provenance),
        known=_identity.Known({**model_config, "model_type": who.model_type}, own),
        own=own,
        force=force,
    )
    about = about._replace(outer=_hints.outer(strip_prefix, infos, about))
    prefixes, spellings = _provenance.prefixes(provenance), _provenance.spellings(provenance)
    stored = identify(infos, source, about)
    to = target_form(target, stored.form, about, scan, _provenance.origin(provenance), prefixes, spellings)
    stored.reasons += unstackable(to)
    model_type, overridden = bind(stored, to, source, about)
    earlier, forced = str(provenance.get("overridden") or ""), against(stored, about)
    stored.notes += [f"warning: {forced}"] if forced else []
    stored.notes += [f"warning: {earlier} (said when it was converted)"] if earlier else []
    heads, before = _provenance.heads(provenance), _provenance.buffers(provenance)

    def sizes_of(key: str, layer: Layer) -> AttentionConfig:
        remembered = heads.get(key, (None, None))
        return sizes(layer, model_config, (num_heads, num_kv_heads), remembered, force=force)

    planned = assemble(
        stored,
        to,
        sizes_of,
        infos,
        rest=rest,
        dtype=cast,
        before=before,
        tables=_tables.unpack(provenance).get(to.family.name, {}),
        kept_before=_provenance.names(provenance, "kept"),
        ties=Ties(_identity.tied(model_config, about.said), _provenance.tied(provenance)),
        about=about,
    )
    name, form = stored.form.family.name, stored.form
    record = {
        "prefixes": prefixes | {name: form.prefix},
        "spellings": {key: list(value) for key, value in spellings.items()} | {name: [form.outer, form.old_norms]},
        "model_type": model_type,
        "overridden": "; ".join(dict.fromkeys(text for text in (earlier, overridden, forced) if text)),
        "tied": planned.record["tied"],
        "tables": provenance.get("tables", {}),
        "config": _provenance.config_as_json(model_config),
    }
    return replace(planned, record=record)


def assemble(
    source: Model,
    to: Form,
    sizes_of: ConfigOf,
    infos: Mapping[str, TensorInfo],
    *,
    rest: str = "error",
    dtype: NumPyDType | None = None,
    before: _provenance.Buffers | None = None,
    tables: Mapping[str, Array] | None = None,
    kept_before: Collection[str] = (),
    ties: Ties | None = None,
    about: About | None = None,
) -> Plan:
    """The plan of every conversion: what was found, through the canonical model, to the form ``to``.

    ``before``: what was left out on the way here, by family. ``tables``: those of ``to`` whose bytes were kept.
    ``kept_before``: what no rule knew then either. ``about``: what its sizes are compared with.
    """
    ties = ties or Ties()
    source.reasons += [*(f"{name}: missing" for name in source.missing), *source.faults]
    model = read(source, sizes_of)
    if about is not None:
        model.reasons += _widths.mismatches(model, about)
        model.reasons += headless(model, about)
    kept = [name for name in source.left_over if rest == "keep" or name in kept_before] + source.unread
    others = [name for name in source.left_over if name not in kept]
    if rest == "drop":
        model.dropped.update(dict.fromkeys(others, "no rule knows it"))
    else:
        model.reasons += [_left_over(name, source.form) for name in others]
    ties.cut(model, to)
    ties.fill(model, to)
    written = write(model, to)
    for name in kept:
        if name in written:
            model.reasons.append(f"{name}: the name of a tensor that is kept is also the name of a converted one")
        written[name] = Lazy.read(name, *infos[name])
    again = _tables.make_again(before or {}, to, written)
    _tables.carry(model, to, infos, written)
    _tables.put_back(tables or {}, to, written)
    if not model.reasons and not to.attention_only:
        stored = match(to, written)
        lacks = f"{to.family.name} cannot do without it, and the source has none"
        model.reasons += [f"{name}: {lacks}" for name in stored.missing] if stored else []
        model.reasons += stored.faults if stored else []
    refuse(model.reasons, (source.form, to), source.evidence, source.headline)
    left_out = {n: TensorInfo(lazy.shape, lazy.dtype) for n, (rule, lazy) in model.buffers.items() if rule.maker}
    return Plan(
        forms=(source.form, to),
        evidence=source.evidence,
        moves=tuple(Move(name, _cast(name, lazy, dtype)) for name, lazy in written.items()),
        infos=infos,
        steps=tuple(_tables.steps(model, kept=about is not None)),
        dropped=model.dropped | _tables.said(model, kept=about is not None),
        kept=tuple(kept),
        dtype=dtype,
        layers=model.layers,
        checks=tuple(model.checks),
        buffers={source.form.family.name: left_out} if left_out or again else before or {},
        notes=tuple(dict.fromkeys(model.notes)),
        shared=tuple(model.shared),
        tables=tuple(name for name in model.tables if name in model.dropped) if about is not None else (),
        record={"tied": ties.record(source.form.family.name, model.ties)},
    )


def back(plan: Plan) -> Plan:
    """The plan that undoes ``plan``: from the tensors it writes to those it reads. Casts are not undone."""
    origin, to = plan.forms
    outputs = plan.outputs
    written = match(to, outputs)
    assert written is not None
    undo = assemble(
        written,
        origin,
        lambda key, layer: plan.layers[key].config,
        outputs,
        rest="keep",
        before=plan.buffers,
        ties=Ties(shared=True),
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


def _left_over(name: str, form: Form) -> str:
    if form.attention_only:
        return f"{name}: left over: it lies outside every attention layer"
    return f"{name}: left over, {form.family.name} does not know it"


def refuse(reasons: list[str], forms: tuple[Form, Form], evidence: tuple[str, ...] = (), headline: str = "") -> None:
    """One ValueError for all of ``reasons``, if there are any; of many the first. ``headline``: what it begins with."""
    if not reasons:
        return
    what, (origin, to) = "the checkpoint" if evidence else "tensors", forms
    if not headline:
        headline = f"{what} cannot be converted from {origin} to {to}"
        if str(origin) == str(to):
            untold = all(": num_heads is needed" in reason for reason in reasons)
            why = "what its tensors do not show must be given" if untold else f"it is not a whole {origin}"
            headline = f"{what} cannot be converted: {why}"
    reasons = list(dict.fromkeys(reasons))
    more = [f"... and {len(reasons) - _LISTED} more"] if len(reasons) > _LISTED else []
    hints = [*(f"({line})" for line in evidence), *_advice(reasons, origin, bool(evidence))]
    raise ValueError("\n  ".join([f"{headline}:", *reasons[:_LISTED], *more, *hints]))


def _advice(reasons: list[str], origin: Form, checkpoint: bool) -> list[str]:
    """What can be done about tensors that no rule knows."""
    if not any(": left over" in reason for reason in reasons):
        return []
    if not checkpoint and not any("lies outside" in reason for reason in reasons):
        return []
    if not checkpoint:
        keep = 'others="keep" carries over what is no attention, others="drop" leaves it out'
        return [f"{keep}; maskattn.convert.convert_model converts a whole model's tensors"]
    keep = "--rest keep carries what is left over along, --rest drop leaves it out"
    return [keep] + ([] if origin.attention_only else [_hints.ADVICE])
