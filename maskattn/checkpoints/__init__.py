"""How files store tensors: lazy readers that trust nothing, writers that leave a whole file or none.

One format per file here, entered in ``_FORMATS``: its ``SUFFIXES``, ``open_file``, ``create``, and ``unsupported``:
everything that it cannot store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from maskattn._problems import Problems
from maskattn.checkpoints import _seal, _states, msgpack, npz, orbax, pytorch, safetensors, sharded
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._folder import in_folder, shard
from maskattn.checkpoints._looks import by_content
from maskattn.checkpoints._memory import KEPT, SHARED, Memory
from maskattn.checkpoints._publish import leftovers, write_json
from maskattn.checkpoints._reader import Reader, sha256
from maskattn.checkpoints._seal import PENDING
from maskattn.checkpoints._writer import Writer, checked, plain, wrong_names
from maskattn.typing import NumPyDType

__all__ = [
    "KEPT",
    "PENDING",
    "Memory",
    "SHARED",
    "Reader",
    "TensorInfo",
    "Writer",
    "create",
    "leftovers",
    "open",
    "save",
    "sha256",
    "shard",
    "write_json",
]

_FORMATS: tuple[ModuleType, ...] = (safetensors, sharded, npz, msgpack, pytorch, orbax)


def open(path: str | os.PathLike[str], *, verify: bool = True, key: str | None = None) -> Reader:
    """Opens a checkpoint as a lazy mapping of names to NumPy arrays; use it in a ``with`` statement.

    Args:
        path: a ``.safetensors`` file, the ``.safetensors.index.json`` of a sharded one, an ``.npz`` file, Flax's
            ``.msgpack``, PyTorch's ``.pt``, ``.bin``, ``.pth`` or ``.ckpt``, an Orbax checkpoint (a folder), the
            index of several of these files, or a folder as hubs and training runs leave it: the weights are taken
            (``model.safetensors`` before ``pytorch_model.bin``, the latest step), and ``notes`` says so.
        verify: each tensor that is read is compared with its SHA-256, where the file has hashes (those that this
            library writes have); False reads a damaged file as it is.
        key: which of the states that a training file holds: ``"model_ema"``, or keys joined by slashes,
            ``"ema/params"``. None: the model's (``model``, ``state_dict``, ``params``, ...), and ``notes`` says so.

    Raises:
        FileNotFoundError: nothing is there. TypeError: path is none.
        ValueError: a suffix of no known format, a folder with none or several checkpoints, a damaged or hostile file,
            a key that holds no tensors. No Python object is ever unpickled; sizes are checked before memory is taken.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str or a path, got {type(path).__name__}")
    where = Path(path)
    if not where.exists():
        hub = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", os.fspath(path)) and not where.name.endswith(_suffixes())
        hint = (
            f"; a model of the Hugging Face Hub is fetched first: hf download {where} --local-dir FOLDER" if hub else ""
        )
        raise FileNotFoundError(f"path: no checkpoint at {where}{hint}")
    notes: list[str] = []
    if where.is_dir():
        where, notes = in_folder(where, _suffixes())
    try:
        reader = _opened(where, verify, key)
    except ValueError as error:
        said = "" if where.is_dir() else by_content(where)
        if not said:
            raise
        raise ValueError(f"{where}: this is {said} ({error})") from None
    part = shard(where)
    reader.notes[:0] = [*notes, part] if part else notes
    return reader


def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for module in _FORMATS for suffix in module.SUFFIXES)


def _opened(where: Path, verify: bool, key: str | None) -> Reader:
    kind = orbax if where.is_dir() else _format(where)
    if kind is pytorch:
        return pytorch.open_file(where, verify, key)
    return _states.part(kind.open_file(where, verify), key)


def create(
    path: str | os.PathLike[str],
    infos: Mapping[str, TensorInfo],
    *,
    metadata: Mapping[str, str] | None = None,
    provenance: Mapping[str, object] | None = None,
    max_shard_size: int | None = None,
) -> Writer:
    """A writer of a new checkpoint, tensor by tensor, replacing a file that is there when it is left.

    >>> import numpy as np, tempfile
    >>> from maskattn import checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     info = checkpoints.TensorInfo((2, 3), np.dtype("float32"))
    ...     with checkpoints.create(f"{folder}/a.safetensors", {"x": info}) as writer:
    ...         writer.write("x", np.ones((3, 2), np.float32).T)
    ...     with checkpoints.open(f"{folder}/a.safetensors") as reader:
    ...         print(reader["x"].shape, reader.hashes["x"][:8])
    (2, 3) f4691328

    Args:
        path: where to; its suffix names the format (``.orbax`` is a folder). For a sharded one, the index, or the
            name that a single file would have.
        infos: names to shapes and dtypes, all that will be written.
        metadata: text to text, kept where the format has room for it, such as safetensors' ``__metadata__``
            (transformers expects ``{"format": "pt"}`` there).
        provenance: a JSON object: where the tensors come from. It is kept with the hash of every tensor.
        max_shard_size: bytes; a safetensors checkpoint with more tensor bytes becomes several files and an index.

    Raises:
        ValueError: an unknown suffix, names, dtypes or metadata that the format cannot hold: all at once.
        FileExistsError: a sharded checkpoint is there already, or one beside ``path`` would hide the new one.
        TypeError: infos are no mapping.
    """
    where = Path(path)
    kind = _format(where)
    if not isinstance(infos, Mapping):
        raise TypeError(f"infos must be a mapping of names to TensorInfo, got {type(infos).__name__}")
    reasons = checked(infos, metadata, _seal.KEY)
    little = {name: TensorInfo(tuple(info.shape), _little(info.dtype)) for name, info in infos.items() if not reasons}
    reasons += kind.unsupported(little)
    if max_shard_size is not None and (not isinstance(max_shard_size, int) or max_shard_size < 1):
        reasons.append(f"max_shard_size must be a positive int, got {max_shard_size!r}")
    elif max_shard_size is not None and kind not in (safetensors, sharded):
        reasons.append(f"max_shard_size: only safetensors is written in several files, not {where.suffix}")
    if not where.parent.is_dir():
        reasons.append(f"path: there is no folder {where.parent}")
    elif kind is sharded and not where.name.endswith(safetensors.SUFFIXES[0] + ".index.json"):
        reasons.append("path: only safetensors is written in several files")
    elif where.is_dir() and kind is not orbax:
        reasons.append(f"path: {where} is a folder")
    Problems(f"{where} cannot be written", reasons).raise_if_any()
    if kind is safetensors and max_shard_size is not None and sum(i.nbytes for i in little.values()) > max_shard_size:
        _alone(where)
        kind, where = sharded, where.with_name(where.name + ".index.json")
    elif kind is sharded:
        _alone(where.with_name(where.name.removesuffix(".index.json")))
    elif kind is safetensors:
        _alone(where.with_name(where.name + ".index.json"))
    writer: Writer = kind.create(where, little, dict(metadata or {}), plain(provenance), max_shard_size)
    return writer


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Writes NumPy arrays to ``path``, replacing a file that is there; see ``create`` for the arguments.

    The file is written beside its place, synced and renamed: whatever fails, what was at ``path`` is still there.

    Args:
        path: where to; its suffix names the format.
        tensors: names to NumPy arrays of any memory order.
        metadata: text to text.
        max_shard_size: bytes; safetensors only.

    Raises:
        ValueError: an unknown suffix, a dtype the format has no name for, values that are not arrays: all at once.
        OSError: the file cannot be written. TypeError: tensors are no mapping.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of names to arrays, got {type(tensors).__name__}")
    reasons = [
        f"{name}: expected a NumPy array, got {type(array).__module__}.{type(array).__name__}"
        for name, array in tensors.items()
        if not isinstance(array, np.ndarray)
    ]
    reasons += wrong_names(tensors)
    Problems("tensors cannot be saved", reasons).raise_if_any()
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
    with create(path, infos, metadata=metadata, max_shard_size=max_shard_size) as writer:
        writer.write_each(tensors.__getitem__)


def _little(dtype: NumPyDType) -> NumPyDType:
    return dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype


def _alone(other: Path) -> None:
    if other.exists():
        raise FileExistsError(f"{other} exists, and readers would take it for this checkpoint; remove it first")


def _format(path: Path) -> ModuleType:
    for module in _FORMATS:
        if path.name.endswith(module.SUFFIXES):
            return module
    known = ", ".join(_suffixes())
    raise ValueError(f"path: {path.name!r} has no suffix of a known format; expected one of {known}")
