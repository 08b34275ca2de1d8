"""NumPy's .npz: a zip archive of .npy files. Pickled members are never loaded.

bfloat16 has no name of its own in this format: it is stored as two bytes without a type, as JAX code has long done,
and a member of that kind is read as bfloat16.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from maskattn._contiguous import contiguous
from maskattn.checkpoints import _seal, _zip
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._reader import Reader
from maskattn.checkpoints._writer import FileWriter
from maskattn.typing import NumPyArray as Array

SUFFIXES = (".npz",)
# Weights hardly compress: a large archive that would inflate to more times its size than this is a bomb.
INFLATION_LIMIT = 100
INFLATION_FLOOR = 256 * 2**20

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, UnicodeError)


class NpzReader(Reader):
    """One archive. Shapes and sizes are read from every member's header on opening, and must agree with the archive."""

    def __init__(self, path: Path, verify: bool) -> None:
        self._lock = threading.Lock()
        try:
            with open(path, "rb") as file:
                comment = _zip.comment(file)
            self._zip = zipfile.ZipFile(path)
        except (ValueError, *_BROKEN) as error:
            raise ValueError(f"{path}: not an .npz file ({error})") from None
        try:
            infos = self._infos(path)
            members = {name: self._zip.getinfo(self._order[name][0]) for name in infos}
            super().__init__(path, infos, _zip.metadata(comment, members), verify)
        except BaseException:
            self._zip.close()
            raise

    def _infos(self, path: Path) -> dict[str, TensorInfo]:
        members = self._zip.infolist()
        total = sum(member.file_size for member in members)
        limit = max(INFLATION_FLOOR, INFLATION_LIMIT * os.path.getsize(path))
        if total > limit:
            raise ValueError(f"{path}: would inflate to {total} bytes, the limit is {limit}; save it uncompressed")
        infos: dict[str, TensorInfo] = {}
        self._order: dict[str, tuple[str, int, bool]] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in infos:
                raise ValueError(
                    f"{path}: member {member.filename!r} is {'there twice' if name in infos else 'no .npy'}"
                )
            try:
                with self._zip.open(member) as file:
                    info, fortran, start = _npy_header(file)
            except (ValueError, *_BROKEN) as error:
                raise ValueError(f"{path}: {name!r} cannot be read: {error}") from None
            if start + info.nbytes != member.file_size:
                raise ValueError(
                    f"{path}: {name!r} of shape {list(info.shape)} and dtype {info.dtype} needs {info.nbytes} bytes, "
                    f"but the archive holds {member.file_size - start}"
                )
            infos[name] = info
            self._order[name] = (member.filename, start, fortran)
        return infos

    def _read(self, name: str, info: TensorInfo) -> Array:
        member, start, fortran = self._order[name]
        array = self._memory.empty((math.prod(info.shape),), info.dtype)
        buffer = array.view(np.uint8).data
        try:
            # one member at a time: where one begins, zipfile of Python 3.12 looks from where another thread just read
            with self._lock, self._zip.open(member) as file:
                file.read(start)
                while buffer:
                    count = file.readinto(buffer)  # type: ignore[attr-defined]
                    if not count:
                        raise EOFError("the data end too early")
                    buffer = buffer[count:]
                file.read(1)  # reaching the end is what makes zipfile compare the checksum
        except _BROKEN as error:
            raise ValueError(f"{self.path}: {name!r} cannot be read: {error}") from None
        return contiguous(array.reshape(info.shape, order="F")) if fortran else array.reshape(info.shape)

    def _close(self) -> None:
        self._zip.close()


def unsupported(infos: Mapping[str, TensorInfo]) -> list[str]:
    """What this format cannot store."""
    return [
        f"{name}: .npz has no dtype {info.dtype}"
        for name, info in infos.items()
        if info.dtype != _BFLOAT16 and info.dtype.kind not in "biufc"
    ]


class NpzWriter(FileWriter):
    """One archive. Comments of a zip are invisible to NumPy: each member's holds its hash, the archive's the rest."""

    def _prepare(self) -> None:
        self._zip: zipfile.ZipFile | None = None
        self._out: IO[bytes] | None = None
        _zip.compose(self.path, self.provenance, dict.fromkeys(self.infos, _seal.PENDING), self.infos, self.metadata)

    def _begin(self) -> None:
        super()._begin()
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        info = self.infos[name]
        # A fixed date: the same tensors give the same bytes.
        self._member = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
        assert self._zip is not None
        self._out = self._zip.open(self._member, "w", force_zip64=True)
        dtype = np.dtype("V2") if info.dtype == _BFLOAT16 else info.dtype
        described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": info.shape}
        npy.write_array_header_1_0(self._out, described)
        return self._out.write

    def _end_tensor(self, name: str) -> None:
        assert self._out is not None
        self._out.close()
        self._member.comment = _zip.member_comment(self.hashes[name])

    def _complete(self) -> None:
        assert self._zip is not None
        self._zip.comment = _zip.compose(self.path, self.provenance, self.hashes, self.infos, self.metadata)
        self._zip.close()

    def _discard(self) -> None:
        for part in (self._out, self._zip):
            with contextlib.suppress(OSError, ValueError):  # closing writes, which fails again where the disk is full
                if part is not None:
                    part.close()
        super()._discard()


open_file, create = NpzReader, NpzWriter


def _npy_header(file: IO[bytes]) -> tuple[TensorInfo, bool, int]:
    """What the header of a .npy says: shape and dtype, whether the order is Fortran's, where the data begin."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format")
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded")
    if dtype == np.dtype("V2"):
        dtype = _BFLOAT16
    elif dtype.kind not in "biufc" or not dtype.isnative:
        raise ValueError(f"dtype {dtype}")
    if any(size < 0 for size in shape) or len(shape) > 32:
        raise ValueError(f"shape {shape!r:.100}")
    return TensorInfo(tuple(int(size) for size in shape), dtype), bool(fortran), file.tell()
