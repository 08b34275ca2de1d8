"""A model's numbers out of a file: which tensor goes where, known before a number is read; into one: `saving`.

A twin makes parameters of arrays, and arrays of parameters; all else is here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from maskattn import checkpoints
from maskattn._contiguous import fill
from maskattn._hf_config import Reading, Value
from maskattn.checkpoints import TensorInfo, sha256
from maskattn.models import ROWS, describe
from maskattn.models.forms import Names, Piece, file_shape, published
from maskattn.models.leaves import Tensor, first_numbers
from maskattn.models.model import WholeModel
from maskattn.typing import Array, NumPyArray, NumPyDType

A = TypeVar("A", bound=Array)

#: What files hold and no model reads: tables that are computed when a model is built, and heads of the pretraining.
UNREAD = tuple(
    re.compile(pattern)
    for pattern in (
        r"(^|\.)position_ids$",
        r"(^|\.)(encoder|decoder)\.version$",
        r"(^|\.)rotary_(emb|embeddings)\.inv_freq$",
        r"(^|\.)(attn|attention|crossattention)\.(masked_)?bias$",  # masks of the GPT family
        r"(^|\.)relative_position_index$",
        r"(^|\.)attn_mask$",
        r"(^|\.)relative_coords_table$",
        r"^(model\.)?(encoder|decoder)\.embed_positions\.weights?$",  # where it is computed, the table has none
        r"(^|\.)decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
        r"^cls\.seq_relationship\.",
        r"^sop_classifier\.",
        r"^(mask|lm)_predictions\.",
        r"^(quantizer|project_hid|project_q)\.",
        r"(^|\.)masked_spec_embed$",  # where the configuration masks nothing
        r"^model\.layers\.61\.",  # DeepSeek-V3's prediction of further tokens
    )
)
#: Where heads are that may be the table of tokens.
_HEADS = re.compile(
    r"^(lm_head|proj_out|embed_out|decoder|vocab_projector|generator_lm_head|((cls\.)?predictions|lm_head)\.decoder)\."
    r"(weight|bias)$"
)
_TABLES = re.compile(r"(?<![^.])(encoder|decoder)\.embed_tokens\.weight$")
_HEADED = ("ForCausalLM", "LMHeadModel")
_LISTED = 20


class Source(Protocol):
    """Tensors of a file that are read when asked for.

    Attributes:
        infos: names to shapes and dtypes. config: what its config.json says.
        generation: what its generation_config.json says, {} where there is none.
        where: what errors begin with.
    """

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...
    @property
    def config(self) -> Mapping[str, Value]: ...
    @property
    def generation(self) -> Mapping[str, Value]: ...
    @property
    def where(self) -> str: ...

    def __getitem__(self, name: str, /) -> NumPyArray: ...

    def part(self, name: str, index: tuple[slice, ...], /) -> NumPyArray:
        """A part of a tensor, by slices with bounds: no more is read than that, where the file's format allows it."""

    def each(self, names: Sequence[str], work: Callable[[str, NumPyArray], None]) -> None:
        """Calls `work` with every name and its array, the caller's own; two may be worked on at once."""


class Stored(NamedTuple):
    """A tensor of a file: its shape, and the model's tensors that it is made of."""

    shape: tuple[int, ...]
    made: tuple[tuple[str, Piece], ...]


@dataclass(frozen=True, eq=False)
class Origin:
    """What a model was loaded from, as far as writing it again needs it.

    Attributes:
        config, generation: as in `Source`.
        stored: the tensors of the file that are the model's.
        unread: those that no model reads; equal ones are one array.
    """

    config: dict[str, Value]
    generation: dict[str, Value] = field(default_factory=dict)
    stored: Mapping[str, Stored] = field(default_factory=dict)
    unread: Mapping[str, NumPyArray] = field(default_factory=dict)


@dataclass
class Loading:
    """A file as a model, before it is read.

    Attributes:
        table: the model. tensors: its tensors, by their names. where: what each is made of.
        copies: tensors of the file that must be another one's copy: name -> the model's tensor.
        unread: as in `Origin`. reasons: what is wrong.
        computed: tensors that the file leaves to be computed. missing: names that it should have, and has not.
    """

    table: WholeModel
    tensors: dict[str, Tensor]
    where: dict[str, tuple[Piece, ...]]
    copies: dict[str, str]
    unread: list[str]
    reasons: list[str]
    computed: dict[str, NumPyArray] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def tensors_of(table: WholeModel) -> dict[str, Tensor]:
    """All tensors of a model, by their published names."""
    found: dict[str, Tensor] = {}
    for path, leaf in table.leaves():
        for name, tensor in leaf.tensors().items():
            found[f"{path}.{name}" if name else path] = tensor
    return found


def load(
    source: Source,
    make: Callable[[str, Tensor, NumPyArray], A],
    param_dtype: NumPyDType | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> tuple[WholeModel, dict[str, A], Origin]:
    """Reads a model: each tensor once, the largest first.

    Args:
        source: the file. make: what a twin makes of a tensor, by its name, in the published order of axes.
        param_dtype: what `make` casts floating-point tensors to; None: nothing.
        progress: called with the name and the bytes of each tensor that was taken out of the file, one at a time.

    Raises:
        ValueError: one error that lists every tensor that is missing, not known, of another shape or dtype; a model
            type without a row.
    """
    loading, held = checked(source)
    users = users_of(loading.where)
    taking = _Taking(loading, users, make, progress)
    done = {*loading.copies, *held}
    for file in list(held):
        taking.take(file, held.pop(file))
    for name, array in loading.computed.items():
        taking.made[name] = make(name, loading.tensors[name], array)
    order = sorted((*users, *loading.unread), key=lambda file: -source.infos[file].nbytes)
    source.each([file for file in order if file not in done], taking.take)
    return loading.table, taking.made, origin_from(source, loading, taking.unread, param_dtype)


def checked(source: Source) -> tuple[Loading, dict[str, NumPyArray]]:
    """What a file is, and what was read to know it.

    Raises:
        ValueError: as `load`.
    """
    loading, held = _settled(source)
    if loading.reasons:
        prefix = _prefix(loading.missing, source.infos)
        if prefix:
            raise ValueError(
                f"{source.where}: names begin with {prefix!r}, and are those of a {loading.table.model_type} without "
                f"it: `maskattn convert` with --strip-prefix {prefix} writes them so"
            )
        shown = loading.reasons[:_LISTED]
        more = [f"... and {len(loading.reasons) - _LISTED} more"] if len(loading.reasons) > _LISTED else []
        named = Reading(source.config, 0, source.where).architecture
        whole = f"{source.where} is not a whole {loading.table.model_type}{f' ({named})' * bool(named)}:"
        raise ValueError("\n  ".join([whole, *shown, *more]))
    return loading, held


def origin_from(
    source: Source, loading: Loading, unread: Mapping[str, NumPyArray], param_dtype: NumPyDType | None
) -> Origin:
    """What a model is loaded from."""
    every = users_of(loading.where) | {file: [(name, Piece(file))] for file, name in loading.copies.items()}
    stored = {file: Stored(info.shape, tuple(every[file])) for file, info in source.infos.items() if file in every}
    config = dict(source.config)
    if param_dtype is not None:
        config |= {key: str(param_dtype) for key in ("dtype", "torch_dtype") if key in config}
    return Origin(config, dict(source.generation), stored, unread)


class _Taking(Generic[A]):
    """Arrays of a file, in any order, become a model's."""

    def __init__(
        self,
        loading: Loading,
        users: Mapping[str, list[tuple[str, Piece]]],
        make: Callable[[str, Tensor, NumPyArray], A],
        progress: Callable[[str, int], None] | None,
    ) -> None:
        self._loading, self._users, self._make, self._lock = loading, users, make, Lock()
        self._progress = progress
        self._missing = {name: len(several) for name, several in loading.where.items()}
        self._parts: dict[str, NumPyArray] = {}
        self._seen: dict[str, NumPyArray] = {}
        self.made: dict[str, A] = {}
        self.unread: dict[str, NumPyArray] = {}

    def take(self, file: str, array: NumPyArray) -> None:
        """One tensor of the file."""
        if file not in self._users:
            with self._lock:
                known = f"{sha256(array)} {array.shape} {array.dtype}"
                self.unread[file] = self._seen.setdefault(known, array)
        for name, piece in self._users.get(file, ()):
            whole = array if is_whole(piece) else self._joined(name, piece, array)
            if whole is not None:
                self.made[name] = self._make(name, self._loading.tensors[name], whole)
        if self._progress is not None:
            with self._lock:
                self._progress(file, array.nbytes)

    def _joined(self, name: str, piece: Piece, array: NumPyArray) -> NumPyArray | None:
        """What a tensor of several pieces is, with the last of them."""
        with self._lock:
            if name not in self._parts:
                self._parts[name] = checkpoints.KEPT.empty(self._loading.tensors[name].shape, array.dtype)
            target = self._parts[name]
        fill(target[piece.here], array[piece.there])
        with self._lock:
            self._missing[name] -= 1
            return None if self._missing[name] else self._parts.pop(name)


def is_whole(piece: Piece) -> bool:
    """Whether it is all of a tensor of the file, and all of the model's."""
    return not piece.there and not piece.here


def users_of(where: Mapping[str, tuple[Piece, ...]]) -> dict[str, list[tuple[str, Piece]]]:
    """What each tensor of the file is used for, of what each of the model's is made of."""
    found: dict[str, list[tuple[str, Piece]]] = {}
    for name, several in where.items():
        for piece in several:
            found.setdefault(piece.file, []).append((name, piece))
    return found


def _settled(source: Source) -> tuple[Loading, dict[str, NumPyArray]]:
    """What a file is, with its copies compared, and what was read for that: two heads with different numbers are not
    tied, whatever the configuration says.
    """
    held: dict[str, NumPyArray] = {}
    for tied in (None, False):
        loading = planned(source, tied)
        for copy, name in () if loading.reasons else loading.copies.items():
            file = loading.where[name][0].file
            for each in (file, copy):
                if each not in held:
                    held[each] = source[each]
            if _same(held[file], held[copy]):
                del held[copy]
            elif tied is None and _HEADS.match(copy) and copy.endswith(".weight"):
                break
            else:
                loading.reasons.append(f"{copy}: must be what {file} is, and has other numbers")
        else:
            break
    return loading, held


def _same(one: NumPyArray, other: NumPyArray) -> bool:
    return one.dtype == other.dtype and np.array_equal(
        np.ascontiguousarray(one).reshape(-1).view(np.uint8), np.ascontiguousarray(other).reshape(-1).view(np.uint8)
    )


def planned(source: Source, tied: bool | None = None) -> Loading:
    """Which tensor goes where, and what is wrong.

    Args:
        source: the file. tied: as in `describe`.
    """
    config, infos = source.config, source.infos
    if config.get("quantization_config") is not None:
        raise ValueError(f"{source.where}: its tensors are quantized ({_method(config)}): only plain ones are read")
    names = Names(str(config.get("model_type", "")), infos)
    table = describe(config, names, tied)
    loading = Loading(table, tensors_of(table), {}, {}, [], [])
    for name, tensor in loading.tensors.items():
        found = names.find(name, tensor.shape)
        if found is None and callable(tensor.begins) and not tensor.trained:
            kinds = [info.dtype for info in infos.values() if is_floating(info.dtype)]
            loading.computed[name] = first_numbers(name, tensor).astype(kinds[0] if kinds else np.float32)
        elif found is None:
            file = published(table.model_type, name)[0].file
            loading.missing.append(file)
            loading.reasons.append(f"{file}: missing, expected {list(tensor.shape)}")
        else:
            loading.where[name] = found
    if getattr(table, "head", "") is None and _is_headed(config, table, loading):
        loading.reasons.append("there is no head, which a model of its class has that is not tied")
    users = users_of(loading.where)
    for file, several in users.items():
        loading.reasons += _faults(file, infos[file], [(loading.tensors[name], piece) for name, piece in several])
    for found in loading.where.values():
        if len({infos[piece.file].dtype for piece in found}) > 1:
            loading.reasons.append(f"{found[0].file} and others: have several dtypes, and are one tensor here")
    for file in infos:
        if file not in users:
            _left_over(file, infos[file], loading)
    return loading


def _is_headed(config: Mapping[str, Value], table: WholeModel, loading: Loading) -> bool:
    """Whether a class is named whose models have a head of their own, and the file is no base model's."""
    prefix = str(ROWS[table.model_type].get("prefix", ""))
    based = not prefix or any(name.startswith(prefix) for name in loading.tensors)
    return (
        based and config.get("tie_word_embeddings") is False and Reading(config, 0, "").architecture.endswith(_HEADED)
    )


def _faults(file: str, info: TensorInfo, several: list[tuple[Tensor, Piece]]) -> Iterable[str]:
    tensor, piece = several[-1]
    shape = file_shape(piece, tensor.shape)
    if info.shape != shape:
        yield f"{file}: has shape {list(info.shape)}, expected {list(shape)}"
    if tensor.trained and info.dtype.name not in _DTYPES:
        yield f"{file}: is {info.dtype}, expected one of {', '.join(_DTYPES)}"


_DTYPES = ("float32", "bfloat16", "float16", "float64")


def _left_over(file: str, info: TensorInfo, loading: Loading) -> None:
    """What to do with a tensor that is none of the model's."""
    original = _original(file, loading)
    if original is not None and loading.tensors[original].shape == info.shape:
        loading.copies[file] = original
    elif any(pattern.search(file) for pattern in UNREAD):
        loading.unread.append(file)
    else:
        known = [piece.file for several in loading.where.values() for piece in several]
        near = difflib.get_close_matches(file, dict.fromkeys((*known, *loading.tensors)), n=1, cutoff=0.75)
        said = f"; the nearest that it has is {near[0]}" if near else ""
        loading.reasons.append(f"{file}: a {loading.table.model_type} has no such tensor{said}")


def _prefix(missing: list[str], infos: Mapping[str, TensorInfo]) -> str:
    """What all names that are missing have in front of them in the file; empty where there is no such thing."""
    ends = [name.removesuffix(missing[0]) for name in infos if name.endswith(f".{missing[0]}")] if missing else []
    return next((end for end in ends if all(f"{end}{file}" in infos for file in missing)), "")


def _original(file: str, loading: Loading) -> str | None:
    """The model's tensor that this one of the file is a second copy of, by its name."""
    head = _HEADS.match(file)
    if head is not None:
        vocabulary = getattr(loading.table, "head", None)
        if vocabulary is None:
            return None
        tied, bias = getattr(vocabulary, "tied", None), getattr(vocabulary, "bias", None)
        if head[4] == "weight":
            return None if tied is None else f"{tied.name}.weight"
        return None if bias is None else bias.name
    shared = _TABLES.sub("shared.weight", file)
    return shared if shared != file and shared in loading.where else None


def _method(config: Mapping[str, Value]) -> str:
    told = config["quantization_config"]
    return str(told.get("quant_method", "quantized")) if isinstance(told, Mapping) else "quantized"


def is_floating(dtype: NumPyDType) -> bool:
    """Whether it is one of the dtypes that parameters have."""
    return dtype.name in _DTYPES
