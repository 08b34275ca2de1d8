"""A checkpoint as a whole model: both twins against transformers, layer by layer; else one against the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskattn.arrays import dtype_named
from maskattn.checkpoints import sha256
from maskattn.convert import open_model
from maskattn.convert.compare import FEW, compared, read
from maskattn.convert.twins import JaxModel, TorchModel, numbered
from maskattn.models import WholeModel, files
from maskattn.models.encoder_decoder import EncoderDecoder
from maskattn.models.model import TokenModel
from maskattn.models.sample import sample
from maskattn.models.tasks import Sentence
from maskattn.models.towers import Towers
from maskattn.parity.checkpoint.result import CheckpointResult, Layer
from maskattn.parity.models.released import batch_of, released
from maskattn.parity.models.run import Case
from maskattn.typing import KernelName, NumPyArray as Array

#: What each twin gave, by its name.
Runs = Mapping[str, Mapping[str, Array]]


@dataclass
class _Job:
    path: Path
    kernel: KernelName
    progress: Callable[[str], None]
    notes: list[str] = field(default_factory=list)


def unknown(path: str | Path) -> str | None:
    """Why a checkpoint is no whole model that a table describes; None where it is one."""
    try:
        with open_model(path) as source:
            files.checked(source)
    except (FileNotFoundError, ValueError) as error:
        return f"the whole model is not known: {error}"
    return None


def verify_whole(
    path: str | Path,
    *,
    kernel: KernelName = "auto",
    against: str | Path | None = None,
    given: Mapping[str, Array] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> CheckpointResult:
    """Runs a checkpoint in both twins, and in transformers where it is installed and has such a model, in float32.

    Transformers is judged by its own float64 run, and the twins by both; without it, JAX by PyTorch in the same way.
    One model at a time is in memory.

    Args:
        path: what `maskattn_torch.models.load` takes.
        kernel: of the twins; with "exact" they must be equal bit for bit.
        against: another checkpoint of the same model, which must hold the same tensors byte for byte.
        given: inputs by the names of a call's arguments; None: drawn (`maskattn.models.sample`) by the seed.
        progress: called with what is done now.

    Raises:
        FileNotFoundError, ValueError: it is no whole model that a table describes. ImportError: a twin is missing.
    """
    job = _Job(Path(path), kernel, progress)
    with open_model(path) as source:
        table, config = files.checked(source)[0].table, source.config
    inputs = dict(given or sample(table, config, seed))
    described = ", ".join(f"{name} {list(x.shape)}" for name, x in inputs.items())
    layers, judge = _beside_transformers(job, table, inputs) if _installed() else ((), "")
    if not layers:
        judge = "the PyTorch twin"
        layers = _twins_alone(job, inputs)
    difference = None if against is None else _difference(path, against)
    return CheckpointResult(
        str(path),
        table.model_type,
        judge,
        f"{described} (random, seed {seed})" if given is None else described,
        layers,
        tuple(job.notes),
        None if against is None else str(against),
        difference,
        kernel,
    )


def _installed() -> bool:
    return importlib.util.find_spec("transformers") is not None


def _beside_transformers(job: _Job, table: WholeModel, given: dict[str, Array]) -> tuple[tuple[Layer, ...], str]:
    """Every layer, and what the judge is called; no layer where transformers has no such model, which is noted."""
    job.progress("reading in transformers")
    try:
        peer, how, missing = released(job.path)
    except (ValueError, KeyError, OSError, TypeError) as error:
        job.notes.append(f"transformers was not compared with: {type(error).__name__}: {error}")
        return (), ""
    judge = f"transformers' {type(peer.model).__name__}, its numbers {how}"
    job.progress("transformers, in float32 and in float64")
    case = Case(peer, batch_of(given, peer.config), "float32", False, FEW)
    named = type(peer.model).__name__
    kind = "" if named in (getattr(peer.config, "architectures", None) or ()) else named
    del peer
    ours = {twin.name: _run(job, twin, given) for twin in (TorchModel, JaxModel)}
    left = set(_left_out(table, missing, kind, case.theirs, ours["torch"], job.notes))
    judged = {name: {each.name: each for each in case.compared(x)} for name, x in ours.items()}
    names = sorted((name for name in judged["torch"] | judged["jax"] if name not in left), key=_order)
    labels = _labels(table, names)
    layers = []
    for name in names:
        own = _own(case.theirs.get(name), case.right.get(name))
        each = {twin: of[name] for twin, of in judged.items() if name in of}
        layers.append(Layer(labels[name], each, own, _differing(job, name, ours)))
    return tuple(layers), judge


def _left_out(
    table: WholeModel,
    missing: list[str],
    kind: str,
    theirs: Mapping[str, Array],
    ours: Mapping[str, Array],
    notes: list[str],
) -> Iterator[str]:
    """What cannot be compared: what transformers makes of numbers that the file has none of; logits, where the
    configuration names no class that has some, and transformers' model is one without a head, `kind`."""
    if isinstance(table, TokenModel) and isinstance(table.pooler, Sentence):
        notes.append("pooled is the vector of a sentence, which transformers does not make: it is not compared")
        yield "pooled"
    alone = [name for name in theirs if name not in ours] if missing else []
    if alone:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(f"{', '.join(alone)}: not compared, since the file has no {listed}, which transformers draws anew")
    yield from alone
    if kind and "logits" in ours and "logits" not in theirs:
        notes.append(f"logits: not compared, since the configuration names no class, and transformers' {kind} has none")
        yield "logits"


def _twins_alone(job: _Job, given: dict[str, Array]) -> tuple[Layer, ...]:
    """JAX against PyTorch, every block."""
    runs: dict[str, Mapping[str, Array]] = {}
    right: dict[str, Array] = {}
    runs["torch"] = _run(job, TorchModel, given, right)
    runs["jax"] = _run(job, JaxModel, given, right)
    return tuple(
        Layer(
            each.name, {"jax": each}, _own(runs["torch"][each.name], right[each.name]), _differing(job, each.name, runs)
        )
        for each in compared(runs["jax"], runs["torch"], right)
    )


def _run(
    job: _Job, twin: type[TorchModel] | type[JaxModel], given: dict[str, Array], right: dict[str, Array] | None = None
) -> Mapping[str, Array]:
    """What a twin makes of the checkpoint; in place of transformers every block, and in PyTorch in float64 too."""
    job.progress(f"reading for {twin.name}")
    with open_model(job.path) as source:
        exact = job.kernel == "exact"  # computes in the dtype of the parameters
        table, numbers = read(source, dtype_named("float32") if exact else None)
    model = twin(table, numbers, None if exact else "float32", job.kernel, right is not None)
    job.progress(f"{twin.name}, in float32")
    made = model(given)
    if right is not None and isinstance(model, TorchModel):
        job.progress("torch, in float64")
        right |= model(given, "float64")
    return made


def _differing(job: _Job, name: str, runs: Runs) -> int | None:
    if job.kernel != "exact" or any(name not in run for run in runs.values()):
        return None
    one, other = (np.ascontiguousarray(run[name]) for run in runs.values())
    if one.shape != other.shape or one.dtype != other.dtype:
        return one.size
    bits = f"u{one.dtype.itemsize}"
    return int((one.view(bits) != other.view(bits)).sum())


def _own(theirs: Array | None, right: Array | None) -> float:
    if theirs is None or right is None:
        return float("nan")
    return float(np.sqrt(np.square(theirs.astype(np.float64) - right).mean()))


def _order(name: str) -> tuple[bool, bool]:
    """An encoder comes before a decoder, and blocks before what is made of the last."""
    return not name.startswith("encoder"), "hidden_states." not in name


def _labels(table: WholeModel, names: list[str]) -> dict[str, str]:
    """What gives each of the things: hidden states are those of a block, by its path."""
    made = {}
    for name in names:
        kind, _, number = name.rpartition("hidden_states.")
        places = _places(table, kind) if number.isdigit() else []
        made[name] = places[int(number)] if number.isdigit() and int(number) < len(places) else name
    return made


def _places(table: WholeModel, kind: str) -> list[str]:
    """The paths of the blocks that gave hidden states: what the first reads, and then each."""
    if isinstance(table, Towers):
        return _places(table.text if kind == "texts." else table.vision, "")
    stacks = table.stacks()
    if isinstance(table, EncoderDecoder):
        stacks = stacks[:1] if kind == "encoder_" else stacks[1:]
    elif len(stacks) > 1 and hasattr(table, "body"):
        return [f"before {stacks[0].places[0]}", *(stack.places[-1].rpartition(".blocks.")[0] for stack in stacks)]
    *blocks, last = numbered(stacks[0].places)
    final = None if stacks[0].bare else stacks[0].final
    return [f"before {stacks[0].places[0]}", *blocks, last if final is None else f"{last} and {final.name}"]


def _difference(path: str | Path, against: str | Path) -> str | None:
    """The first tensor of two checkpoints that differs, by its name in the model."""

    def seals(place: str | Path) -> dict[str, str]:
        with open_model(place) as source:
            held = files.load(source, lambda name, tensor, array: array)[1]
        return {name: f"{array.dtype}{list(array.shape)} {sha256(array)}" for name, array in held.items()}

    ours, theirs = seals(path), seals(against)
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in ours or name not in theirs:
            return f"{name}: only in {path if name in ours else against}"
        if ours[name] != theirs[name]:
            kinds = (seal.rpartition(" ")[0] for seal in (ours[name], theirs[name]))
            return f"{name}: not the same bytes, {' against '.join(kinds)}"
    return None
