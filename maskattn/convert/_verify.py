"""Whether a conversion lost anything: the file read back, undone and compared, then run on both sides.

Every tensor of the source is made again from the file that was written, and its SHA-256 compared with that of the
source; what the file has beside is made again from the source. Then PyTorch runs the whole model of the source and JAX
that of the file, and what every layer gives is compared (``maskattn.convert.compare``).

Where no table describes the model, it is attention alone: for each shape of layer, PyTorch runs one on the source's
weights and JAX on those of the file, under a padding and a causal mask, and both are held to their limits
(``maskattn.standards``). All runs in float32 whatever it is stored in, since the limits of narrower dtypes at real
widths are wider than any fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskattn import masks, standards
from maskattn.checkpoints import Reader, sha256
from maskattn.config import AttentionConfig
from maskattn.convert import config_json
from maskattn.convert._plan import Move, Plan, back, in_order
from maskattn.convert._run import each
from maskattn.convert._whole import model_of
from maskattn.convert.compare import Compared, absent, compare as compare_models
from maskattn.convert.layouts import CANONICAL, DTYPES
from maskattn.convert.twins import JaxTwin, TorchTwin, WithinLimits, random_inputs
from maskattn.models import files
from maskattn.typing import NumPyArray as Array, NumPyDType

Progress = Callable[[str, int], None]

LENGTHS = (9, 4, 1)
UNSEEN = (
    "what this cannot see: whether the table of the model is right, by which both sides compute; `maskattn parity "
    "checkpoint` compares with transformers"
)
CHANGED = "a step of the plan changes numbers, so that both frameworks run those of the file"
UNSEEN_OF_ATTENTION = (
    "what this cannot see: whether the form is the right one (both sides read the source by the same table), rotary "
    "embeddings, norms of queries and keys, and all that is not attention; there, only the bytes are compared"
)
_MOVED = ("reshape", "transpose", "take", "concatenate", "stack", "moveaxis", "cast", "computed")


@dataclass(frozen=True)
class Ran(WithinLimits):
    """One attention layer in one framework: its largest error, the limit there, and the largest error / limit."""

    layer: str
    sizes: str
    mask: str
    twin: str
    weights: str
    error: float
    limit: float
    share: float


@dataclass
class Verification:
    """What was compared.

    Attributes:
      same: tensors that came back byte for byte. different: those that did not, and how.
      near: tensors that a step changed on the way, with their largest difference relative to the largest number.
      absent: tensors of the source that are not carried over.
      layers: what a whole model gave in both frameworks, layer by layer. ran: attention, where no whole model was run.
      notes: what was not run, and why.
    """

    same: list[str] = field(default_factory=list)
    different: dict[str, str] = field(default_factory=dict)
    near: dict[str, float] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    layers: list[Compared] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every tensor came back and every layer kept its limit."""
        return bool(self.same) and not self.different and all(each.held for each in (*self.layers, *self.ran))


def verify(
    plan: Plan,
    source: Reader,
    written: Reader,
    *,
    config: Mapping[str, Any] | None = None,
    attention: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Compares ``written``, which carrying out ``plan`` gave, with ``source``, which it was made from.

    Under a cast, each tensor is compared with the source's cast in the same way.

    Args:
        config: what config.json says of the model; None: the one beside the source.
        attention: False leaves the frameworks out.
        progress: called with each tensor of the source that was compared, and its bytes; then with what is run, and 0.

    Raises:
        ValueError: the file does not hold what was planned, or is damaged.
    """
    expected = plan.outputs
    wrong = [name for name in {**expected, **written.infos} if expected.get(name) != written.infos.get(name)]
    if wrong:
        raise ValueError(f"{written.path}: not what was planned: {', '.join(sorted(wrong)[:5])}")
    result, undo = Verification(), back(plan)
    moves = list(in_order(undo, tuple(move.target for move in undo.moves)))
    lock = threading.Lock()

    def compare(move: Move, read: Callable[[str], Array]) -> None:
        original = _cast(source[move.target], plan.dtype)
        outcome = _compare(original, move.array.evaluate(read), move.array.operations, plan.exact)
        with lock:
            _note(result, move.target, outcome)
            if progress is not None:
                progress(move.target, source.infos[move.target].nbytes)

    each(moves, undo.infos, written, compare)
    used = {name for move in moves for name in move.array.sources}
    for move in plan.moves:  # what was made beside the source's own: a head that is the embedding
        if move.target not in used:
            outcome = _compare(move.array.evaluate(source.__getitem__), written[move.target], (), True)
            if outcome is not None:
                _note(result, move.target, outcome)
    compared = {move.target for move in moves}
    result.absent = [name for name in source.infos if name not in compared]
    not_said = [name for name in result.absent if name not in plan.dropped]
    result.different.update(dict.fromkeys(not_said, "cannot be made again from the file"))
    missing = absent()
    if attention and missing:
        result.notes.append(f"nothing was run, only bytes are compared: {', '.join(missing)} not installed")
    elif attention and not _whole(result, plan, source, written, config, progress):
        result.notes.append(UNSEEN_OF_ATTENTION)
        result.ran += _attention(plan, undo, source, written, result.notes)
    return result


def _whole(
    result: Verification,
    plan: Plan,
    source: Reader,
    written: Reader,
    config: Mapping[str, Any] | None,
    progress: Progress | None,
) -> bool:
    """Runs the whole model on both sides; False where it is not known, which the notes say."""
    config = config_json.beside(source.path) if config is None else config
    moved = all(step.exact for step in plan.steps)
    try:
        outer = plan.forms[0].outer if moved else ""
        left = model_of(source if moved else written, config, source.path, outer)
        right = model_of(written, left.config, written.path)  # which may lie beside fewer files
        for side in (left, right):
            files.checked(side)
    except (ValueError, FileNotFoundError) as error:
        result.notes.append(f"attention alone was run, since the whole model is not known: {error}")
        return False
    result.notes += [UNSEEN] if moved else [UNSEEN, CHANGED]

    def told(what: str) -> None:
        if progress is not None:
            progress(what, 0)

    result.layers += compare_models(left, right, plan.dtype, partly=bool(plan.dropped), progress=told)
    return True


def _compare(original: Array, made: Array, operations: tuple[str, ...], exact: bool) -> str | float | None:
    """None where both are the same byte for byte; how far apart they are where a step changed them; or what differs."""
    if (original.dtype, original.shape) != (made.dtype, made.shape):
        return f"{made.dtype} {list(made.shape)} for {original.dtype} {list(original.shape)}"
    if sha256(made) == sha256(original):
        return None
    if not exact and not all(what.startswith(_MOVED) for what in operations):
        wide = original.astype(np.float64)
        largest = float(np.abs(wide).max(initial=0)) or 1.0
        error = float(np.abs(made.astype(np.float64) - wide).max(initial=0)) / largest
        limit = standards.value("convert.near") * standards.eps(original.dtype) / standards.eps("float32")
        if error <= limit:
            return error
        return f"largest difference {error:.3g} of the largest number, where its step changes at most {limit:.3g}"
    return f"{int((_bytes(original) != _bytes(made)).sum())} of {original.nbytes} bytes differ"


def _note(result: Verification, name: str, outcome: str | float | None) -> None:
    if outcome is None:
        result.same.append(name)
    elif isinstance(outcome, float):
        result.near[name] = outcome
    else:
        result.different[name] = outcome


def _attention(plan: Plan, undo: Plan, source: Reader, written: Reader, notes: list[str]) -> Iterator[Ran]:
    seen: set[tuple[AttentionConfig, str]] = set()
    for name, layer in plan.layers.items():
        needed = CANONICAL.shapes(layer.config)
        dtype = plan.dtype or layer.tensors["query.kernel"].dtype
        if (layer.config, dtype.name) in seen or name not in undo.layers or dtype not in DTYPES:
            continue
        seen.add((layer.config, dtype.name))
        left = {part: _cast(layer.tensors[part].evaluate(source.__getitem__), plan.dtype) for part in needed}
        right = {part: undo.layers[name].tensors[part].evaluate(written.__getitem__) for part in needed}
        beside = [part for part in layer.tensors if part not in needed]
        if beside:
            notes.append(f"{layer.own_name}: run without {', '.join(beside)}, which the modules do not have")
        yield from _run(layer.own_name, layer.config, left, right)


def _run(layer: str, config: AttentionConfig, left: dict[str, Array], right: dict[str, Array]) -> Iterator[Ran]:
    """PyTorch with the source's weights, JAX with the file's, on the same random inputs."""
    dtypes = {array.dtype for array in left.values()}
    wide = max(*dtypes, np.dtype(np.float32), key=lambda dtype: dtype.itemsize)
    left, right = ({part: array.astype(wide) for part, array in side.items()} for side in (left, right))
    stored = next(iter(dtypes)) if len(dtypes) == 1 else wide
    sizes = _sizes(config, wide) + ("" if stored == wide else f", stored in {stored}")
    length = max(LENGTHS)
    inputs, others = random_inputs(config, LENGTHS, wide)
    padding = (np.arange(length) < np.array(LENGTHS)[:, None])[:, None, None, :]
    causal = np.tri(length, dtype=bool)[None, None]
    sides = (TorchTwin(left, "canonical", config), "the source's"), (JaxTwin(right, "canonical", config), "the file's")
    for label, mask, allowed in (
        ("padding", np.array(LENGTHS, np.int32), padding),
        ("causal", masks.Causal(), causal),
    ):
        judge = standards.module_oracle(inputs[0], left, allowed, wide.name, **others)
        limit = standards.module_limit(inputs[0], left, allowed, wide.name, **others)
        for module, weights in sides:
            error = np.abs(module(inputs, mask, "reference").astype(np.float64) - judge)
            error = standards.beyond_rounding(error, judge, wide)
            share = standards.share(error, limit)
            at = int(np.argmax(share))
            numbers = float(error.flat[at]), float(limit.flat[at]), float(share.flat[at])
            yield Ran(layer, sizes, label, module.name, weights, *numbers)


def _sizes(config: AttentionConfig, dtype: NumPyDType) -> str:
    kv = "" if config.num_kv_heads == config.num_heads else f", {config.num_kv_heads} key/value"
    return f"{config.embed_dim} wide, {config.num_heads} heads{kv} of {config.head_dim}, {dtype}"


def _cast(array: Array, dtype: NumPyDType | None) -> Array:
    return array if dtype is None or array.dtype not in DTYPES else array.astype(dtype, copy=False)


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
