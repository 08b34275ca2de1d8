"""What a writer is: tensors in, one at a time, in bounded memory, hashed as they are written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar

import numpy as np

from maskattn._contiguous import contiguous
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._memory import Memory
from maskattn.checkpoints._publish import Temporary, sync_folder
from maskattn.typing import NumPyArray as Array, NumPyDType

THREADS = 2
CHUNK = 2**21  # laid out, hashed and written while it is in the cache
# What is laid out anew is so in pieces of at least so many rows, if these have at most so many bytes: of a transpose,
# the rows of a piece lie together in the source, and each place of it that is read should give some cache lines.
ROWS, PIECE = 256, 2**24
WRITEBACK = 2**25  # bytes after which what was written goes on its way to the disk


class Writer(ABC):
    """Writes the tensors that were announced, each once, in any order; use it in a ``with`` statement.

    Leaving the block publishes the file, in one step; leaving it by an exception removes everything that was made, and
    what was at ``path`` is as it was. Beside the tensors in hand a few MB are held, however large the file.

    ``infos`` is what was announced, ``order`` its names in the order that the format stores, ``hashes`` the SHA-256 of
    each tensor written so far. ``max_shard_size``: bytes of each file, where a format has several. ``metadata`` and
    ``provenance`` as in ``create``.
    """

    parallel: ClassVar[bool] = False  # whether tensors can be written from several threads at once

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        metadata: Mapping[str, str],
        provenance: Mapping[str, Any],
        max_shard_size: int | None = None,
    ) -> None:
        self.path, self.infos, self.metadata, self.provenance = path, dict(infos), dict(metadata), dict(provenance)
        self.order, self.max_shard_size = tuple(infos), max_shard_size
        self.hashes: dict[str, str] = {}
        self._taken: set[str] = set()
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._memory = Memory(spare=THREADS)
        self._entered = self._left = self._broken = False
        self._prepare()

    def write(self, name: str, array: Array) -> None:
        """Writes one tensor: any strides, memory order and byte order, 0-d and empty too.

        May be called from several threads; where the format takes one tensor after another, they wait for each other.

        Raises:
            ValueError: a name that was not announced or is written twice, another shape or dtype than announced, a
                writer outside its ``with`` block. TypeError: not a NumPy array.
            OSError: the file could not be written.
        """
        with self._lock:
            self._check(name, array)
            self._taken.add(name)
        try:
            with contextlib.nullcontext() if self.parallel else self._turn:
                self._write(name, _little(array))
        except BaseException:
            self._broken = True
            raise

    def write_each(self, make: Callable[[str], Array], done: Callable[[str], None] | None = None) -> None:
        """Writes ``make(name)`` for every name of ``order`` that is not written yet, on two threads where that helps.

        While one tensor is hashed and written, the next is made: at most two are in memory.

        Args:
            make: gives the tensor of a name; called from both threads.
            done: called with each name that was written, under a lock.
        """
        names, reporting = iter([name for name in self.order if name not in self._taken]), threading.Lock()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    name = next(names, None)
                if name is None:
                    return
                try:
                    self.write(name, make(name))
                    with reporting:
                        if done is not None:
                            done(name)
                except BaseException:
                    stop.set()
                    raise

        with ThreadPoolExecutor(THREADS) as threads:
            running = [threads.submit(work) for _ in range(THREADS)]
            try:
                for thread in running:
                    thread.result()
            except BaseException:
                stop.set()
                raise

    def __enter__(self) -> Writer:
        if self._entered:
            raise ValueError(f"{self.path}: a writer is entered once")
        self._entered = True
        try:
            self._begin()
        except BaseException:
            self._left = True
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        try:
            if kind is None:
                if self._broken:
                    raise ValueError(f"{self.path}: nothing was written, because writing a tensor failed before")
                missing = [name for name in self.infos if name not in self._taken]
                if missing:
                    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                    raise ValueError(f"{self.path}: {len(missing)} tensors were announced but not written: {shown}")
                self._publish()
        finally:
            self._discard()

    def _check(self, name: str, array: Array) -> None:
        if not self._entered or self._left:
            raise ValueError(f"{self.path}: {name!r} is written outside the writer's with block")
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {type(array).__module__}.{type(array).__name__}")
        info = self.infos.get(name)
        if info is None:
            raise ValueError(f"{self.path}: {name!r} was not announced")
        if name in self._taken:
            raise ValueError(f"{self.path}: {name!r} is written twice")
        if array.shape != info.shape or _native(array.dtype) != _native(info.dtype):
            raise ValueError(
                f"{self.path}: {name!r} was announced with shape {list(info.shape)} and dtype {info.dtype}, "
                f"got shape {list(array.shape)} and dtype {array.dtype}"
            )

    def _write(self, name: str, array: Array) -> None:
        """Hashes and appends the bytes of ``array``, which is little-endian."""
        digest = hashlib.sha256()
        append = self._begin_tensor(name)
        for chunk in chunks(array, self._memory):
            digest.update(chunk)
            append(chunk)
        self.hashes[name] = digest.hexdigest()
        self._end_tensor(name)

    # What a format defines.

    def _prepare(self) -> None:
        """Lays out what will be written: names, shapes and dtypes are known, nothing is open yet."""
        return

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]: ...

    def _end_tensor(self, name: str) -> None:
        return

    @abstractmethod
    def _publish(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...


class Appender:
    """Writes from one place of a file on, whatever other threads write elsewhere in it."""

    def __init__(self, descriptor: int, at: int) -> None:
        self._descriptor, self._at, self._synced = descriptor, at, at

    def __call__(self, chunk: memoryview) -> None:
        while chunk:
            count = os.pwrite(self._descriptor, chunk, self._at)
            chunk = chunk[count:]
            self._at += count
        if self._at - self._synced >= WRITEBACK and hasattr(os, "posix_fadvise"):
            # Starts writing, and gives up pages that are written: memory stays with those who need it.
            start = max(0, self._synced - 4 * WRITEBACK)
            os.posix_fadvise(self._descriptor, start, self._at - start, os.POSIX_FADV_DONTNEED)
            self._synced = self._at


class FileWriter(Writer):
    """A writer of one file."""

    _temporary: Temporary | None = None

    @property
    def _file(self) -> IO[bytes]:
        assert self._temporary is not None
        return self._temporary.file

    def _begin(self) -> None:
        self._temporary = Temporary(self.path)

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        return self._file.write

    def _publish(self) -> None:
        assert self._temporary is not None
        self._complete()
        self._temporary.sync()
        self._temporary.publish()
        sync_folder(self.path.parent)

    def _discard(self) -> None:
        if self._temporary is not None:
            self._temporary.discard()

    def _complete(self) -> None:
        """What is written when all tensors are."""


def checked(infos: Mapping[Any, object], metadata: Mapping[Any, object] | None, reserved: str) -> list[str]:
    """What is wrong with the names, shapes and dtypes of a new file, and with its metadata: one line each."""
    reasons = wrong_names(infos)
    for name, info in infos.items():
        if not isinstance(info, TensorInfo):
            reasons.append(f"{name}: expected a TensorInfo, got {type(info).__name__}")
        elif len(info.shape) > 32 or any(not isinstance(n, (int, np.integer)) or n < 0 for n in info.shape):
            reasons.append(f"{name}: shape {info.shape!r:.100}")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            reasons.append(f"metadata must map str to str, got {key!r}: {value!r:.100}")
        elif key == reserved:
            reasons.append(f"metadata: the key {reserved!r} is written by this library")
    return reasons


def wrong_names(names: Iterable[object]) -> list[str]:
    """What is wrong with the names of tensors: one line each."""
    reasons: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name:
            reasons.append(f"{name!r}: names must be non-empty str")
        elif any("\ud800" <= c <= "\udfff" for c in name):
            reasons.append(f"{name!r}: names must be valid Unicode")
    return reasons


def plain(provenance: Mapping[str, object] | None) -> dict[str, Any]:
    """``provenance`` as it will be read back; ValueError where it is no JSON object."""
    try:
        out = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be a JSON object ({error})") from None
    assert isinstance(out, dict)
    return out


def _native(dtype: NumPyDType) -> NumPyDType:
    return dtype.newbyteorder("=") if dtype.kind in "iufc" else dtype


def _little(array: Array) -> Array:
    if array.dtype.kind in "iufc" and array.dtype != array.dtype.newbyteorder("<"):
        return array.astype(array.dtype.newbyteorder("<"))
    return array


def chunks(array: Array, memory: Memory) -> Iterator[memoryview]:
    """The bytes of ``array`` in C order, about CHUNK at a time; each is read before the next is asked for."""
    if array.size == 0:
        return
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK]
        return
    rows = CHUNK * len(array) // array.nbytes
    rows = max(rows, min(ROWS, PIECE * len(array) // array.nbytes))
    if rows == 0:
        for part in array:
            yield from chunks(part, memory)
        return
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        yield from chunks(contiguous(part, memory.empty(part.shape, part.dtype)), memory)
