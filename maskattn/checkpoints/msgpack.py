"""Flax's msgpack (``flax.serialization.to_bytes``): a nested map whose leaves are arrays. Nothing else is made of it.

Read and written here directly, without Flax: a reader of the whole file would hold it twice in memory. An array is an
extension of type 1 that holds (shape, name of dtype, bytes); one above 2^30 bytes is a map of flat chunks (flax 0.12,
``flax/serialization.py``; https://github.com/msgpack/msgpack/blob/master/spec.md).

The format has no room for metadata, so hashes and provenance are in a file beside it, ``<name>.maskattn.json``. Without
that file everything is read as it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from maskattn.checkpoints import _seal, _trees
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._msgpack import ARRAY, CHUNKED, NUMPY_SCALAR, Scanner, pack, pack_map_header, pack_prefix
from maskattn.checkpoints._publish import Temporary, sync_folder
from maskattn.checkpoints._reader import Reader
from maskattn.checkpoints._writer import Appender, FileWriter
from maskattn.typing import NumPyArray as Array

SUFFIXES = (".msgpack",)
BESIDE = ".maskattn.json"
CHUNK_LIMIT = 2**30  # flax.serialization.MAX_CHUNK_SIZE
BESIDE_LIMIT = 100_000_000

_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


class MsgpackReader(Reader):
    """One file: its structure is read on opening, its arrays when they are asked for."""

    def __init__(self, path: Path, verify: bool) -> None:
        self._file: IO[bytes] = open(path, "rb")
        try:
            content = _beside(path, verify)
            mark = content.get("separator", _trees.DEFAULT)
            leaves, left_out = _leaves(path, Scanner(self._file, path), mark)
            names, said = {name: name for name in leaves}, list[str]()
            if not content:
                names, said = _trees.without_value(leaves, mark)
            infos = {new: leaves[name][0] for name, new in names.items()}
            metadata = dict(content.get("metadata", {}))
            if _seal.KEY in content:
                metadata[_seal.KEY] = json.dumps(content[_seal.KEY])
            super().__init__(path, infos, metadata, verify)
        except BaseException:
            self._file.close()
            raise
        self._spans = {new: leaves[name][1] for name, new in names.items()}
        self.notes += [*left_out, *said]

    def _read(self, name: str, info: TensorInfo) -> Array:
        array = self._memory.empty(info.shape, info.dtype)
        buffer = array.reshape(-1).view(np.uint8).data
        for start, size in self._spans[name]:
            while size:
                count = os.preadv(self._file.fileno(), [buffer[:size]], start)
                if not count:
                    raise ValueError(f"{self.path}: ends within {name!r}: the file was cut short after it was opened")
                buffer, start, size = buffer[count:], start + count, size - count
        return array

    def _close(self) -> None:
        self._file.close()


def unsupported(infos: Mapping[str, TensorInfo]) -> list[str]:
    """What this format cannot store."""
    reasons = [f"{n}: Flax restores no dtype {i.dtype}" for n, i in infos.items() if i.dtype.name not in _DTYPES]
    return reasons + _trees.unsupported(infos)


class MsgpackWriter(FileWriter):
    """One file, as ``flax.serialization.msgpack_serialize`` would write the tree, and the one beside it."""

    parallel = True

    def _prepare(self) -> None:
        tree: dict[str, Any] = {}
        for name, parts in _trees.paths(self.infos).items():
            node = tree
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            node[parts[-1]] = TensorName(name)
        self._structure: list[tuple[int, bytes]] = []
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._end = 0
        self._lay_out(tree)
        self.order = tuple(self._spans)

    def _lay_out(self, node: dict[str, Any]) -> None:
        self._place(pack_map_header(len(node)))
        for key, child in node.items():
            self._place(pack(key))
            if isinstance(child, dict):
                self._lay_out(child)
            else:
                self._lay_out_array(child.name, self.infos[child.name])

    def _lay_out_array(self, name: str, info: TensorInfo) -> None:
        spans = self._spans[name] = []
        if info.nbytes <= CHUNK_LIMIT:
            self._lay_out_bytes(spans, info.shape, info)
            return
        size, length = math.prod(info.shape), max(1, CHUNK_LIMIT // info.dtype.itemsize)
        self._place(pack_map_header(3) + pack(CHUNKED) + pack(True) + pack("shape") + pack_map_header(len(info.shape)))
        for i, n in enumerate(info.shape):
            self._place(pack(str(i)) + pack(n))
        starts = range(0, size, length)
        self._place(pack("chunks") + pack_map_header(len(starts)))
        for i, start in enumerate(starts):
            self._place(pack(str(i)))
            self._lay_out_bytes(spans, (min(length, size - start),), info)

    def _lay_out_bytes(self, spans: list[tuple[int, int]], shape: tuple[int, ...], info: TensorInfo) -> None:
        size = math.prod(shape) * info.dtype.itemsize
        self._place(pack_prefix(shape, info.dtype.name, size))
        spans.append((self._end, size))
        self._end += size

    def _place(self, data: bytes) -> None:
        self._structure.append((self._end, data))
        self._end += len(data)

    def _begin(self) -> None:
        super()._begin()
        for start, data in self._structure:
            self._file.seek(start)
            self._file.write(data)
        self._file.truncate(self._end)
        self._file.flush()

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        spans = [(Appender(self._file.fileno(), start), size) for start, size in self._spans[name]]

        def append(chunk: memoryview) -> None:
            while chunk:
                put, left = spans[0]
                put(chunk[:left])
                if len(chunk) >= left:
                    del spans[0]
                else:
                    spans[0] = put, left - len(chunk)
                chunk = chunk[left:]

        return append

    def _publish(self) -> None:
        sealed = json.loads(_seal.compose(self.provenance, self.hashes, self.infos, self.metadata))
        content = {"separator": _trees.separator(self.infos), "metadata": self.metadata, _seal.KEY: sealed}
        beside = Temporary(_path_beside(self.path))
        try:
            beside.file.write(json.dumps(content, indent=1).encode())
            beside.sync()
            # The old file never stands beside hashes of the new one, nor the new one beside hashes of the old.
            _path_beside(self.path).unlink(missing_ok=True)
            super()._publish()
            beside.publish()
            sync_folder(self.path.parent)
        finally:
            beside.discard()


open_file, create = MsgpackReader, MsgpackWriter


class TensorName:
    """A leaf of a tree that is laid out."""

    def __init__(self, name: str) -> None:
        self.name = name


def _path_beside(path: Path) -> Path:
    return path.with_name(path.name + BESIDE)


def _beside(path: Path, verify: bool) -> dict[str, Any]:
    """What the file beside ``path`` says, where there is one."""
    beside = _path_beside(path)
    if not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > BESIDE_LIMIT:
            raise ValueError(f"it has {beside.stat().st_size} bytes, the limit is {BESIDE_LIMIT}")
        content = json.loads(beside.read_bytes())
        if not isinstance(content, dict) or not isinstance(content.get("metadata", {}), dict):
            raise ValueError("expected a JSON object")
        if content.get("separator", _trees.DEFAULT) not in _trees.SEPARATORS:
            raise ValueError(f"separator {content['separator']!r:.20}")
    except (ValueError, RecursionError) as error:
        if verify:
            raise ValueError(f"{beside}: cannot be read ({error}); without it, {path.name} is read as it is") from None
        return {}
    return content


Leaves = dict[str, tuple[TensorInfo, list[tuple[int, int]]]]


def _leaves(path: Path, scanner: Scanner, mark: str) -> tuple[Leaves, list[str]]:
    """The arrays of the tree by name: what they are, and where their bytes lie; and what else was there."""
    tree = scanner.scan()
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a map at the top, got {type(tree).__name__}")
    leaves: Leaves = {}
    left_out: list[str] = []
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        prefix, node = stack.pop()
        if isinstance(node, dict) and CHUNKED in node:
            info, spans = _chunked(path, prefix, node)
        elif isinstance(node, (dict, list)):
            items = list(node.items() if isinstance(node, dict) else enumerate(node))
            stack += [(f"{prefix}{mark}{key}" if prefix else str(key), child) for key, child in reversed(items)]
            continue
        elif isinstance(node, tuple) and node[0] in (ARRAY, NUMPY_SCALAR):
            info, spans = _array(path, prefix, node)
        else:
            left_out.append(f"{prefix}: left out, it is no array but {type(node).__name__}")
            continue
        if prefix in leaves or not prefix:
            raise ValueError(f"{path}: two entries are both named {prefix!r}")
        leaves[prefix] = info, spans
    return leaves, left_out


def _array(path: Path, name: str, node: tuple[Any, ...]) -> tuple[TensorInfo, list[tuple[int, int]]]:
    _, shape, dtype, start, size = node
    if dtype not in _DTYPES:
        raise ValueError(f"{path}: {name!r} has dtype {dtype!r:.50}; known are {', '.join(_DTYPES)}")
    info = TensorInfo(shape, _DTYPES[dtype])
    if len(shape) > 32 or info.nbytes != size:
        raise ValueError(
            f"{path}: {name!r} of shape {list(shape)!r:.100} and dtype {dtype} needs {info.nbytes} bytes, "
            f"but {size} are there"
        )
    return info, [(start, size)]


def _chunked(path: Path, name: str, node: dict[str, Any]) -> tuple[TensorInfo, list[tuple[int, int]]]:
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        shape = tuple(node["shape"][str(i)] for i in range(len(node["shape"])))
        parts = [_array(path, name, node["chunks"][str(i)]) for i in range(len(node["chunks"]))]
        kinds = {info.dtype for info, _ in parts}
        if len(kinds) == 1 and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape):
            info = TensorInfo(shape, kinds.pop())
            if info.nbytes == sum(part.nbytes for part, _ in parts):
                return info, [span for _, spans in parts for span in spans]
    raise ValueError(f"{path}: {name!r} is in chunks that do not make an array")
