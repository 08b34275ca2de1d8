"""Orbax checkpoints: a folder with one zarr array for each leaf of a tree, and JSON that describes the tree.

Written as Orbax itself writes with ``use_ocdbt=False``, uncompressed: ``StandardCheckpointer`` and
``PyTreeCheckpointer`` restore it, onto any sharding. Read with TensorStore, which Orbax uses too, in any of its forms
(orbax-checkpoint 0.12, ``_METADATA``; zarr 2, https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html); JAX is not
needed. Hashes and provenance are in Orbax's own custom metadata.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from maskattn.checkpoints import _seal, _trees
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._publish import TemporaryFolder, sync_folder
from maskattn.checkpoints._reader import Reader
from maskattn.checkpoints._writer import Appender, Writer
from maskattn.typing import NumPyArray as Array, NumPyDType

SUFFIXES = (".orbax",)
TREE, ABOUT = "_METADATA", "_CHECKPOINT_METADATA"
# An array is stored in pieces of about so many bytes, so that a device that holds a part need not read it all.
CHUNK = 64 * 2**20
JSON_LIMIT = 100_000_000
INFLATION_LIMIT = 100
INFLATION_FLOOR = 256 * 2**20
HANDLER = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
_DICT_KEY = 2  # orbax's KeyType.DICT
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")

_EXTENDED = {np.dtype(getattr(ml_dtypes, name)): name for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in ("?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8")
}
_DTYPES |= {name: dtype for dtype, name in _EXTENDED.items()}


class OrbaxReader(Reader):
    """A checkpoint's leaves, named by their paths in the tree. Leaves that are no arrays are left out, and noted."""

    def __init__(self, path: Path, verify: bool) -> None:
        _refuse_links(path)
        self._tensorstore = _tensorstore()
        tree, about = _json(path / TREE), _json(path / ABOUT) if (path / ABOUT).exists() else {}
        custom = about.get("custom_metadata")
        custom = custom if isinstance(custom, dict) else {}
        sealed = custom.get(_seal.KEY)
        metadata = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in custom.items() if k != _seal.KEY}
        mark = sealed.pop("separator", None) if isinstance(sealed, dict) else None
        mark = mark if mark in _trees.SEPARATORS else _trees.DEFAULT
        leaves, notes = _leaves(path, tree, mark)
        names, said = _trees.without_value(leaves, mark) if sealed is None else ({name: name for name in leaves}, [])
        self._specs = {new: _spec(path, tree, leaves[name]) for name, new in names.items()}
        infos = {name: self._info(path, name, spec) for name, spec in self._specs.items()}
        _refuse_inflation(path, infos)
        if sealed is not None:
            metadata[_seal.KEY] = json.dumps(sealed)
        super().__init__(path, infos, metadata, verify)
        self.notes += [*notes, *said]

    def _open(self, path: Path, name: str, spec: Mapping[str, object]) -> Any:
        try:
            return self._tensorstore.open(spec, open=True).result()
        except Exception as error:  # TensorStore's ValueError, KeyError, RuntimeError, by the status of its C++
            raise ValueError(f"{path}: {name!r} cannot be read: {str(error)[:300]}") from None

    def _info(self, path: Path, name: str, spec: Mapping[str, object]) -> TensorInfo:
        store = self._open(path, name, spec)
        dtype = _DTYPES.get(store.dtype.name)
        if dtype is None or len(store.shape) > 32:
            raise ValueError(f"{path}: {name!r} has dtype {store.dtype.name} and {len(store.shape)} axes")
        return TensorInfo(tuple(map(int, store.shape)), dtype)

    def _read(self, name: str, info: TensorInfo) -> Array:
        store = self._open(self.path, name, self._specs[name])
        try:
            return np.asarray(store.read().result(), order="C")
        except Exception as error:
            raise ValueError(f"{self.path}: {name!r} cannot be read: {str(error)[:300]}") from None

    def _close(self) -> None:
        return


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is an Orbax checkpoint."""
    return (folder / TREE).is_file()


def unsupported(infos: Mapping[str, TensorInfo]) -> list[str]:
    """What this format cannot store."""
    reasons = [
        f"{name}: Orbax stores no dtype {info.dtype}"
        for name, info in infos.items()
        if info.dtype not in _DTYPES.values()
    ]
    reasons += [f"{name}: Orbax stores no array of size 0" for name, info in infos.items() if info.nbytes == 0]
    tree = _trees.unsupported(infos)
    directories: dict[str, str] = {}
    for name, parts in _trees.paths(infos).items():
        directory = ".".join(parts)
        other = directories.setdefault(directory, name)
        if other != name:
            tree.append(f"{name}: would be stored in one folder with {other}")
        elif directory.startswith((".", "_")) or "\0" in directory or "\\" in directory or "/" in directory:
            tree.append(f"{name}: cannot be the name of a folder, as Orbax stores it")
        elif len(directory.encode()) > 250 or directory in ("array_metadatas", "d", "manifest.ocdbt"):
            tree.append(f"{name}: cannot be the name of a folder, as Orbax stores it")
    return reasons + tree


class OrbaxWriter(Writer):
    """A folder, renamed into its place when it is whole. One that is there is not replaced: FileExistsError."""

    parallel = True
    _place: TemporaryFolder | None = None

    def _prepare(self) -> None:
        self._paths, self._open = _trees.paths(self.infos), dict[str, Chunks]()

    @property
    def _folder(self) -> Path:
        assert self._place is not None
        return self._place.place

    def _begin(self) -> None:
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists: a folder cannot be replaced in one step; remove it first")
        self._place = TemporaryFolder(self.path)
        self._started = time.time_ns()

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        info, folder = self.infos[name], self._folder / ".".join(self._paths[name])
        folder.mkdir()
        chunk = chunk_shape(info)
        described = {
            "chunks": list(chunk), "compressor": None, "dimension_separator": ".", "dtype": _zarr(info.dtype),
            "fill_value": None, "filters": None, "order": "C", "shape": list(info.shape), "zarr_format": 2,
        }  # fmt: skip
        _write_json(folder / ".zarray", described)
        self._open[name] = Chunks(folder, info, chunk)
        return self._open[name]

    def _end_tensor(self, name: str) -> None:
        self._open.pop(name).close()

    def _publish(self) -> None:
        sealed = json.loads(_seal.compose(self.provenance, self.hashes, self.infos, self.metadata))
        sealed["separator"] = _trees.separator(self.infos)
        about = {
            "item_handlers": HANDLER, "metrics": {}, "performance_metrics": {},
            "init_timestamp_nsecs": self._started, "commit_timestamp_nsecs": time.time_ns(),
            "custom_metadata": self.metadata | {_seal.KEY: sealed},
        }  # fmt: skip
        leaf = {"value_type": "np.ndarray", "skip_deserialize": False}
        tree = {
            str(parts): {
                "key_metadata": [{"key": part, "key_type": _DICT_KEY} for part in parts], "value_metadata": leaf,
            }
            for parts in self._paths.values()
        }  # fmt: skip
        _write_json(self._folder / TREE, {
            "tree_metadata": tree, "use_ocdbt": False, "use_zarr3": False, "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        })  # fmt: skip
        _write_json(self._folder / ABOUT, about)
        sync_folder(self._folder)
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists: another program has written it meanwhile")
        os.rename(self._folder, self.path)
        sync_folder(self.path.parent)

    def _discard(self) -> None:
        for chunks in self._open.values():  # of tensors that were begun when something failed
            chunks.close()
        if self._place is not None:
            self._place.discard()


open_file, create = OrbaxReader, OrbaxWriter


class Chunks:
    """Takes the bytes of one array in C order, and puts them into the files of its chunks, one after the other.

    The last chunk along an axis may reach beyond the array; zarr stores it whole.
    """

    def __init__(self, folder: Path, info: TensorInfo, chunk: tuple[int, ...]) -> None:
        self._folder = folder
        self._whole = TensorInfo(chunk, info.dtype).nbytes
        self._files = _chunk_files(info, chunk)
        self._name, self._left = next(self._files)
        self._file: IO[bytes] | None = None

    def __call__(self, data: memoryview) -> None:
        while data:
            part = data[: self._left]
            if self._file is None:
                self._file = open(self._folder / self._name, "xb", buffering=0)
                self._append = Appender(self._file.fileno(), 0)
            self._append(part)
            self._left -= len(part)
            if self._left == 0:
                self._file.truncate(self._whole)
                os.fsync(self._file.fileno())
                self.close()
                self._name, self._left = next(self._files, ("", 0))
                if not self._name:
                    sync_folder(self._folder)
            data = data[len(part) :]

    def close(self) -> None:
        """Closes the file that is being written, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None


def chunk_shape(info: TensorInfo) -> tuple[int, ...]:
    """The shape of a chunk: the largest that follows C order and has at most CHUNK bytes, or one element."""
    shape = list(info.shape)
    for axis, length in enumerate(shape):
        row = math.prod(shape[axis + 1 :]) * info.dtype.itemsize
        pieces = -(-length * row // CHUNK)
        if pieces <= length or axis == len(shape) - 1:
            shape[axis] = -(-length // max(1, min(pieces, length)))
            break
        shape[axis] = 1
    return tuple(shape)


def _chunk_files(info: TensorInfo, chunk: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """The file of each chunk, in C order, and how many bytes of the array it holds."""
    counts = [-(-n // c) for n, c in zip(info.shape, chunk, strict=True)]
    for place in np.ndindex(*counts):
        sizes = [min(c, n - c * i) for n, c, i in zip(info.shape, chunk, place, strict=True)]
        yield ".".join(map(str, place)) or "0", math.prod(sizes) * info.dtype.itemsize


def _zarr(dtype: NumPyDType) -> str:
    return dtype.name if dtype in _EXTENDED else dtype.str


def _write_json(path: Path, content: object) -> None:
    with open(path, "x", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"{path.stat().st_size} bytes, the limit is {JSON_LIMIT}")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError:
        raise ValueError("reading Orbax checkpoints takes TensorStore: pip install orbax-checkpoint") from None
    return tensorstore


def _leaves(path: Path, tree: Mapping[str, object], mark: str) -> tuple[dict[str, str], list[str]]:
    """The arrays of the tree: name to the folder that Orbax stores it under; and what else the tree has."""
    entries = tree.get("tree_metadata")
    if not isinstance(entries, dict):
        raise ValueError(f"{path / TREE}: has no tree_metadata")
    directories: dict[str, str] = {}
    notes: list[str] = []
    for entry in entries.values():
        try:
            parts = [str(key["key"]) for key in entry["key_metadata"]]
            kind, skipped = entry["value_metadata"]["value_type"], entry["value_metadata"].get("skip_deserialize")
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{path / TREE}: an entry that cannot be read: {entry!r:.200}") from None
        name, directory = mark.join(parts), ".".join(parts)
        if skipped or kind not in _ARRAYS:
            notes.append(f"{name}: left out, it is no array but {kind!s:.50}")
        elif not directory or "/" in directory or "\0" in directory or directory in (".", ".."):
            raise ValueError(f"{path / TREE}: {name!r:.200} is no name of a folder in the checkpoint")
        elif name in directories:
            raise ValueError(f"{path / TREE}: two entries are both named {name!r:.200}")
        else:
            directories[name] = directory
    return directories, notes


def _spec(path: Path, tree: Mapping[str, object], directory: str) -> dict[str, Any]:
    """Where TensorStore finds an array. A chunk that is missing is an error, not zeros."""
    base = f"{path.resolve()}/"
    if tree.get("use_ocdbt"):
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": base}, "path": f"{directory}/"}
    else:
        store = {"driver": "file", "path": f"{base}{directory}/"}
    stored = tree.get("store_array_data_equal_to_fill_value") is True
    return {
        "driver": "zarr3" if tree.get("use_zarr3") else "zarr",
        "kvstore": store,
        "fill_missing_data_reads": not stored,
    }


def _refuse_links(path: Path) -> None:
    """Nothing in the folder may be a link that leaves it."""
    root = path.resolve()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            place = Path(folder, name)
            if place.is_symlink() and not place.resolve().is_relative_to(root):
                raise ValueError(f"{path}: {place.relative_to(root)} is a link that leaves the folder")


def _refuse_inflation(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Weights hardly compress: what would inflate to many times its size is a bomb."""
    stored = sum(os.path.getsize(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)
    total, limit = sum(info.nbytes for info in infos.values()), max(INFLATION_FLOOR, INFLATION_LIMIT * stored)
    if total > limit:
        raise ValueError(f"{path}: {stored} bytes that stand for {total} are refused, the limit is {limit}")
