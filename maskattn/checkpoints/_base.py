"""What a reader is, and how a file is written so that it is either whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class TensorInfo(NamedTuple):
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return number_of_elements(self.shape) * self.dtype.itemsize


class Reader(Mapping[str, Array]):
    """Names to arrays of an open checkpoint; an array is read when asked for, and is the caller's own.

    ``infos`` tells names, shapes and dtypes without reading; ``metadata`` is what the file says of itself.
    """

    path: Path
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None) -> None:
        self.path, self.infos, self.metadata, self.closed = path, infos, metadata or {}, False

    def __getitem__(self, name: str) -> Array:
        info = self.infos[name]
        if self.closed:
            raise ValueError(f"{self.path}: the checkpoint is closed, {name!r} can no longer be read")
        return self._read(name, info)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def outline(self) -> dict[str, Array]:
        """Arrays of the right shapes and dtypes that hold nothing and take no memory: enough to find a layout by."""
        return {name: np.broadcast_to(np.zeros((), info.dtype), info.shape) for name, info in self.infos.items()}

    def close(self) -> None:
        """Closes the file; arrays read before stay valid. Closing twice does nothing."""
        self.closed = True
        self._close()

    @abstractmethod
    def _read(self, name: str, info: TensorInfo) -> Array: ...

    @abstractmethod
    def _close(self) -> None: ...


def number_of_elements(shape: tuple[int, ...]) -> int:
    """The product of ``shape`` in exact integers: a hostile shape must not wrap around."""
    total = 1
    for size in shape:
        total *= size
    return total


def writable(tensors: Mapping[str, Any]) -> dict[str, Array]:
    """``tensors`` as C-contiguous little-endian arrays; one ValueError lists what is not a named array.

    Contiguity matters: writers that take an array's buffer as it lies store a transpose as the array it came from.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of names to arrays, got {type(tensors).__name__}")
    found: list[str] = []
    out: dict[str, Array] = {}
    for name, array in tensors.items():
        if not isinstance(name, str) or not name:
            found.append(f"{name!r}: names must be non-empty str")
        elif not isinstance(array, np.ndarray):
            found.append(f"{name}: expected a NumPy array, got {type(array).__module__}.{type(array).__name__}")
        else:
            little = array.dtype.newbyteorder("<") if array.dtype.kind in "iufc" else array.dtype
            out[name] = np.asarray(array, dtype=little, order="C")
    if found:
        raise ValueError("\n  ".join(["tensors cannot be saved:", *found]))
    return out


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Calls ``write`` on a temporary file beside ``path``, syncs it and renames it over ``path``.

    Whatever fails on the way, ``path`` is as it was and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                with contextlib.suppress(PermissionError):
                    os.chmod(temporary, path.stat().st_mode & 0o777)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
