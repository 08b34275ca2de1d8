"""NumPy's .npz: a zip archive of .npy files. Pickled members are never loaded.

bfloat16 has no name of its own in this format: it is stored as two bytes without a type, as JAX code has long done,
and a member of that kind is read as bfloat16.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from maskattn.checkpoints._base import Array, Reader, TensorInfo, number_of_elements, write_atomically

SUFFIXES = (".npz",)
# Weights hardly compress: a large archive that would inflate to more times its size than this is a bomb.
INFLATION_LIMIT = 100
INFLATION_FLOOR = 256 * 2**20

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, UnicodeError)


class NpzReader(Reader):
    """One archive. Shapes and sizes are read from every member's header on opening, and must agree with the archive."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except _BROKEN as error:
            raise ValueError(f"{path}: not an .npz file ({error})") from None
        try:
            infos = self._infos(path)
        except BaseException:
            self._zip.close()
            raise
        super().__init__(path, infos)

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
        array = np.empty(number_of_elements(info.shape), info.dtype)
        buffer = array.view(np.uint8).data
        try:
            with self._zip.open(member) as file:
                file.read(start)
                while buffer:
                    count = file.readinto(buffer)  # type: ignore[attr-defined]
                    if not count:
                        raise EOFError("the data end too early")
                    buffer = buffer[count:]
                file.read(1)  # reaching the end is what makes zipfile compare the checksum
        except _BROKEN as error:
            raise ValueError(f"{self.path}: {name!r} cannot be read: {error}") from None
        return np.ascontiguousarray(array.reshape(info.shape, order="F")) if fortran else array.reshape(info.shape)

    def _close(self) -> None:
        self._zip.close()


def open_file(path: Path) -> Reader:
    """Opens one archive; ValueError where it is none, is inconsistent, or would inflate beyond measure."""
    return NpzReader(path)


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Writes ``tensors`` (contiguous, little-endian) as an uncompressed archive; ``metadata`` has no place in it."""
    unknown = [
        f"{name}: .npz has no dtype {a.dtype}"
        for name, a in tensors.items()
        if a.dtype != _BFLOAT16 and a.dtype.kind not in "biufc"
    ]
    if metadata:
        unknown.append("metadata: .npz has no place for it")
    if unknown:
        raise ValueError("\n  ".join([f"{path} cannot be written:", *unknown]))

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in tensors.items():
                # A fixed date: the same tensors give the same bytes.
                member = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as out:
                    npy.write_array(out, array.view("V2") if array.dtype == _BFLOAT16 else array, allow_pickle=False)

    write_atomically(path, write)


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
