"""What a writer is: tensors in, one at a time, in bounded memory; hashed and written behind the caller's back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from maskattn._contiguous import contiguous
from maskattn.checkpoints._base import Array, TensorInfo

CHUNK = 2**25
PENDING_CHUNKS = 2


class Writer(ABC):
    """Writes the tensors that were announced, each once, in any order; use it in a ``with`` statement.

    Leaving the block publishes the file, in one step; leaving it by an exception removes everything that was made, and
    what was at ``path`` is as it was. Hashing and writing go on in a second thread while the caller prepares the next
    tensor; beside the tensor in hand, some 100 MB are held, however large the file.

    ``infos`` is what was announced, ``order`` its names in the order that the format stores, which is the fastest to
    write, ``hashes`` the SHA-256 of each tensor written so far, once the block has been left of all of them.
    """

    def __init__(
        self, path: Path, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], provenance: Mapping[str, Any]
    ) -> None:
        self.path, self.infos, self.metadata, self.provenance = path, dict(infos), dict(metadata), dict(provenance)
        self.order = tuple(infos)
        self.hashes: dict[str, str] = {}
        self._taken: set[str] = set()
        self._pending: deque[Future[None]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._left = False

    def write(self, name: str, array: Array) -> None:
        """Writes one tensor: any strides, memory order and byte order, 0-d and empty too; afterwards it may be changed.

        Raises:
            ValueError: a name that was not announced or is written twice, another shape or dtype than announced, a
                writer outside its ``with`` block. TypeError: not a NumPy array.
            OSError: the file could not be written (this tensor or one before it).
        """
        self._check(name, array)
        self._taken.add(name)
        digest = hashlib.sha256()
        self._submit(lambda: self._begin_tensor(name))
        shared = False
        for chunk, own in _chunks(_little(array)):
            shared = shared or not own
            self._submit(lambda chunk=chunk: self._consume(digest, chunk))  # type: ignore[misc]
        self._submit(lambda: self._finish_tensor(name, digest.hexdigest()))
        if shared:
            self._drain(0)  # chunks of the caller's own array: it may be changed once this returns

    def __enter__(self) -> Writer:
        if self._thread is not None or self._left:
            raise ValueError(f"{self.path}: a writer is entered once")
        self._thread = ThreadPoolExecutor(1)
        try:
            self._begin()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._drain(0)
                missing = [name for name in self.infos if name not in self._taken]
                if missing:
                    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                    raise ValueError(f"{self.path}: {len(missing)} tensors were announced but not written: {shown}")
                self._publish()
        finally:
            self._stop()

    def _stop(self) -> None:
        """Ends the thread and removes what was not published."""
        self._left = True
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._discard()

    def _check(self, name: str, array: Array) -> None:
        if self._thread is None or self._left:
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

    def _submit(self, work: Callable[[], None]) -> None:
        assert self._thread is not None
        self._pending.append(self._thread.submit(work))
        self._drain(2 + PENDING_CHUNKS)

    def _drain(self, left: int) -> None:
        """Waits until at most ``left`` pieces of work are under way, and raises what went wrong in the thread."""
        while len(self._pending) > left:
            self._pending.popleft().result()

    def _consume(self, digest: Any, chunk: memoryview) -> None:
        digest.update(chunk)
        self._append(chunk)

    def _finish_tensor(self, name: str, digest: str) -> None:
        self.hashes[name] = digest
        self._end_tensor(name)

    # What a format defines. The first three run in the thread, in the order of the calls of ``write``.

    @abstractmethod
    def _begin_tensor(self, name: str) -> None: ...

    @abstractmethod
    def _append(self, chunk: memoryview) -> None: ...

    def _end_tensor(self, name: str) -> None:
        return

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _publish(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...


def checked(infos: Mapping[Any, Any], metadata: Mapping[Any, Any] | None, reserved: str) -> list[str]:
    """What is wrong with the names, shapes and dtypes of a new file, and with its metadata: one line each."""
    found = names_problems(infos)
    for name, info in infos.items():
        if not isinstance(info, TensorInfo):
            found.append(f"{name}: expected a TensorInfo, got {type(info).__name__}")
        elif len(info.shape) > 32 or any(not isinstance(n, (int, np.integer)) or n < 0 for n in info.shape):
            found.append(f"{name}: shape {info.shape!r:.100}")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            found.append(f"metadata must map str to str, got {key!r}: {value!r:.100}")
        elif key == reserved:
            found.append(f"metadata: the key {reserved!r} is written by this library")
    return found


def names_problems(names: Iterable[Any]) -> list[str]:
    """What is wrong with the names of tensors: one line each."""
    found: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name:
            found.append(f"{name!r}: names must be non-empty str")
        elif any("\ud800" <= c <= "\udfff" for c in name):
            found.append(f"{name!r}: names must be valid Unicode")
    return found


def plain(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """``provenance`` as it will be read back; ValueError where it is no JSON object."""
    try:
        out = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be a JSON object ({error})") from None
    assert isinstance(out, dict)
    return out


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=") if dtype.kind in "iufc" else dtype


def _little(array: Array) -> Array:
    if array.dtype.kind in "iufc" and array.dtype != array.dtype.newbyteorder("<"):
        return array.astype(array.dtype.newbyteorder("<"))
    return array


def _chunks(array: Array) -> Iterator[tuple[memoryview, bool]]:
    """The bytes of ``array`` in C order, at most some CHUNK at a time, and whether they are a copy of their own."""
    if array.size == 0:
        return
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK], False
        return
    rows = CHUNK * len(array) // array.nbytes
    if rows == 0:
        for part in array:
            yield from _chunks(part)
        return
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        own = not part.flags.c_contiguous
        yield contiguous(part).reshape(-1).view(np.uint8).data, own
