"""What a reader is: names to arrays, read when asked for, and checked against the hashes that the file has."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from maskattn.checkpoints import _seal
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._memory import SHARED, Memory
from maskattn.typing import NumPyArray as Array


class Reader(Mapping[str, Array]):
    """Names to arrays of an open checkpoint; an array is read when asked for, and is the caller's own. Several
    threads may read at once.

    ``infos`` tells names, shapes and dtypes without reading, in the order of the file; ``metadata`` is what the file
    says of itself. ``hashes`` (SHA-256 by name) and ``provenance`` are what this library wrote with it, empty in other
    files. ``notes`` says what was chosen or left out on opening. ``path`` is the file; with ``verify`` each tensor is
    compared with its hash.
    """

    def __init__(
        self, path: Path, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None, verify: bool
    ) -> None:
        self.path, self.infos, self.closed = path, infos, False
        self.metadata: dict[str, str] = dict(metadata or {})
        self.hashes: dict[str, str] = {}
        self.provenance: dict[str, Any] = {}
        self.notes: list[str] = []
        self._verify = verify
        self._memory = SHARED
        sealed = self.metadata.pop(_seal.KEY, None)
        if sealed is not None:
            self.hashes, self.provenance = _seal.parse(path, sealed, infos, self.metadata, verify)

    def __getitem__(self, name: str) -> Array:
        info = self.infos[name]
        if self.closed:
            raise ValueError(f"{self.path}: the checkpoint is closed, {name!r} can no longer be read")
        array = self._read(name, info)
        expected = self.hashes.get(name) if self._verify else None
        if expected is not None and sha256(array) != expected:
            raise ValueError(
                f"{self.path}: {name!r} is damaged: its SHA-256 is not the one written with it "
                f"(verify=False reads it as it is)"
            )
        return array

    def part(self, name: str, index: tuple[slice, ...]) -> Array:
        """A part of an array [...], of its dtype: no more than that is read where the format allows it, and then it is
        compared with no hash.

        Args:
            name: of the array. index: of each axis its bounds, slices without steps.

        Raises:
            KeyError: there is no such array. ValueError: the checkpoint is closed, or damaged.
        """
        info = self.infos[name]
        if self.closed:
            raise ValueError(f"{self.path}: the checkpoint is closed, {name!r} can no longer be read")
        bounds = tuple(one.indices(size)[:2] for one, size in zip(index, info.shape, strict=True))
        if all(bound == (0, size) for bound, size in zip(bounds, info.shape, strict=True)):
            return self[name]
        return self._read_part(name, info, bounds)

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

    def ahead(self, names: Iterable[str]) -> Iterator[tuple[str, Array]]:
        """Yields each of ``names`` with its array; while the caller works on it, the next is read in another thread."""
        with ThreadPoolExecutor(1) as thread:
            last = None
            for name in names:
                coming = name, thread.submit(self.__getitem__, name)
                if last is not None:
                    yield last[0], last[1].result()
                last = coming
            if last is not None:
                yield last[0], last[1].result()

    def outline(self) -> dict[str, Array]:
        """Arrays of the right shapes and dtypes that hold nothing and take no memory: enough to find a layout by."""
        return {name: np.broadcast_to(np.zeros((), info.dtype), info.shape) for name, info in self.infos.items()}

    def read_into(self, memory: Memory) -> None:
        """Arrays are of this memory from now on.

        Args:
            memory: `KEPT`, for a caller who keeps them.
        """
        self._memory = memory

    def close(self) -> None:
        """Closes the file; arrays read before stay valid. Closing twice does nothing."""
        self.closed = True
        self._memory.clear()
        self._close()

    @abstractmethod
    def _read(self, name: str, info: TensorInfo) -> Array: ...

    def _read_part(self, name: str, info: TensorInfo, bounds: tuple[tuple[int, int], ...]) -> Array:
        return self[name][tuple(slice(*bound) for bound in bounds)].copy()

    @abstractmethod
    def _close(self) -> None: ...


def sha256(array: Array) -> str:
    """The SHA-256 of an array's little-endian bytes in C order, as hexadecimal digits: of any shape and dtype."""
    if array.dtype.kind in "iufc":
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
