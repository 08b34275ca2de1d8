"""PyTorch's ``.pt``, ``.bin``, ``.pth``, ``.ckpt``: weights only, through its own restricted loader and its own writer.

The loader maps the file, so that a tensor is read when it is asked for. It runs no code of the file, and only since
PyTorch 2.10 was no way around that known (CVE-2025-32434, CVE-2026-24747), so older ones are refused. ``torch.save``
writes the skeleton of a file, and the tensors are then written into it one by one.

A program that loads weights sees nothing of the hashes: they are in the archive's comments (``_zip.py``).
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from maskattn._contiguous import contiguous
from maskattn.arrays import to_numpy
from maskattn.checkpoints import _seal, _states, _zip
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._reader import Reader
from maskattn.checkpoints._writer import Appender, FileWriter
from maskattn.typing import NumPyArray as Array

SUFFIXES = (".pt", ".bin", ".pth", ".ckpt")
OLDEST = (2, 10)
ALIGNED = 64
INFLATION_LIMIT = 100
INFLATION_FLOOR = 256 * 2**20

_DTYPES = {
    "bool": np.dtype("?"), "uint8": np.dtype("u1"), "int8": np.dtype("i1"), "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"), "int32": np.dtype("<i4"), "uint32": np.dtype("<u4"), "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "float64": np.dtype("<f8"),
    "complex64": np.dtype("<c8"), "complex128": np.dtype("<c16"), "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class PyTorchReader(Reader):
    """The tensors of one file. ``notes`` says which part was taken for the weights, and what was left out."""

    def __init__(self, path: Path, verify: bool, key: str | None = None) -> None:
        torch = _torch()
        with open(path, "rb") as file:
            members, comment = _members(path, file)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            what = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(
                f"{path}: refused: it holds {what[1] if what else 'something'} beside tensors, which PyTorch's "
                f"restricted loader does not load; save the state_dict alone"
            ) from None
        except Exception as error:  # a damaged file fails in as many ways as PyTorch has exceptions
            raise ValueError(f"{path}: PyTorch cannot load it ({type(error).__name__}: {str(error)[:200]})") from None
        self._size = os.path.getsize(path)
        self._tensors, notes = _weights(path, content, key)
        infos = {name: _info(path, name, tensor) for name, tensor in self._tensors.items()}
        total, limit = sum(i.nbytes for i in infos.values()), max(INFLATION_FLOOR, INFLATION_LIMIT * self._size)
        if total > limit:
            raise ValueError(f"{path}: {self._size} bytes that stand for {total} are refused, the limit is {limit}")
        super().__init__(path, infos, _zip.metadata(comment, dict(zip(infos, members, strict=False))), verify)
        self.notes += notes

    def _read(self, name: str, info: TensorInfo) -> Array:
        if os.path.getsize(self.path) < self._size:
            raise ValueError(f"{self.path}: the file was cut short after it was opened")
        tensor = self._tensors[name].detach().resolve_conj().resolve_neg()
        return contiguous(to_numpy(tensor), self._memory.empty(info.shape, info.dtype))

    def _close(self) -> None:
        self._tensors = {}


def unsupported(infos: Mapping[str, TensorInfo]) -> list[str]:
    """What this format cannot store."""
    return [f"{name}: PyTorch has no dtype {info.dtype}" for name, info in infos.items() if info.dtype not in _NAMES]


class PyTorchWriter(FileWriter):
    """A dict of tensors, as ``torch.save`` lays it out."""

    parallel = True

    def _prepare(self) -> None:
        _torch()
        _zip.compose(self.path, self.provenance, dict.fromkeys(self.infos, _seal.PENDING), self.infos, self.metadata)

    def _begin(self) -> None:
        super()._begin()
        torch = _torch()
        try:
            with torch.serialization.skip_data():
                torch.save(_without_memory(self.infos), self._file)
            self._file.flush()
        except RuntimeError as error:  # what PyTorch makes of an OSError
            cause = error.__context__
            raise (
                cause if isinstance(cause, OSError) else OSError(f"{self.path}: PyTorch cannot write it: {error}")
            ) from None
        members, _ = _members(self.path, self._file)
        self._members = dict(zip(self.infos, members, strict=True))
        for name, member in self._members.items():
            if member.file_size != self.infos[name].nbytes:
                raise RuntimeError(f"{self.path}: torch.save laid out {member.file_size} bytes for {name!r}")
        self._crcs: dict[str, int] = {}

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        append = Appender(self._file.fileno(), self._start(name))
        self._crcs[name] = 0

        def both(chunk: memoryview) -> None:
            self._crcs[name] = zlib.crc32(chunk, self._crcs[name])
            append(chunk)

        return both

    def _start(self, name: str) -> int:
        """Where a member's data begin: after its header, 30 bytes and two fields of the sizes that end it."""
        at = self._members[name].header_offset
        header = os.pread(self._file.fileno(), 30, at)
        return at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")

    def _complete(self) -> None:
        """Checksums and comments; ``torch.save`` took every tensor for zeros."""
        with zipfile.ZipFile(self._file, "a") as archive:
            for name, member in self._members.items():
                member = archive.getinfo(member.filename)
                member.CRC, member.comment = self._crcs[name], _zip.member_comment(self.hashes[name])
                after = self._start(name) + member.file_size
                if os.pread(self._file.fileno(), 4, after) == b"PK\x07\x08":  # the checksum stands after the data too
                    os.pwrite(self._file.fileno(), member.CRC.to_bytes(4, "little"), after + 4)
            archive.comment = _zip.compose(self.path, self.provenance, self.hashes, self.infos, self.metadata)


open_file, create = PyTorchReader, PyTorchWriter


def _torch() -> Any:
    """PyTorch, where it is one whose restricted loader holds."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            "reading and writing .pt, .bin, .pth and .ckpt takes PyTorch: pip install 'torch>=2.10'"
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST:
        raise ValueError(
            f"PyTorch {torch.__version__}: its loader can be made to run code by a file (CVE-2026-24747); "
            f"{'.'.join(map(str, OLDEST))} or newer is needed"
        )
    return torch


def _without_memory(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Tensors of these sizes that nobody reads or writes: addresses apart from each other, and no pages behind them."""
    torch = _torch()
    ends = list(itertools.accumulate(-(-info.nbytes // ALIGNED) * ALIGNED for info in infos.values()))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    room = mmap.mmap(-1, max(ALIGNED, ends[-1] if ends else 0), flags=flags)
    tensors = {}
    for (name, info), start in zip(infos.items(), [0, *ends], strict=False):
        dtype = getattr(torch, _NAMES[info.dtype])
        if info.nbytes:
            plain = torch.frombuffer(room, dtype=torch.uint8, offset=start, count=info.nbytes)
            tensors[name] = plain.view(dtype).reshape(info.shape)
        else:
            tensors[name] = torch.empty(info.shape, dtype=dtype)
    return tensors


def _members(path: Path, file: IO[bytes]) -> tuple[list[zipfile.ZipInfo], bytes]:
    """The archive's tensor data in the order of their numbers, and its comment; a damaged archive is a ValueError."""
    try:
        comment = _zip.comment(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, UnicodeError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a file that PyTorch wrote since version 1.6 ({error}); an older one has to be loaded and "
            f"saved again with PyTorch"
        ) from None
    _refuse_programs(path, members)
    # PyTorch compresses nothing; what is compressed may unfold to any size.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{path}: refused: a member of the archive is compressed, which PyTorch never does")
    if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
        raise ValueError(f"{path}: refused: its members claim more bytes than the file has")
    data = {m.filename.rpartition("/data/")[2]: m for m in members if re.search(r"/data/\d{1,18}$", m.filename)}
    return [data[number] for number in sorted(data, key=int)], comment


def _refuse_programs(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Archives of programs, which are no dicts of tensors."""
    names = {member.filename.partition("/")[2] for member in members}
    what = ""
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        what = "a TorchScript program (torch.jit.save): torch.jit.load it, and save its state_dict()"
    elif "archive_format" in names or "archive_version" in names:
        what = "an exported program (torch.export.save): torch.export.load it, and save its state_dict"
    if what:
        raise ValueError(f"{path}: this is {what} with torch.save")


def _weights(path: Path, content: Any, key: str | None) -> tuple[dict[str, Any], list[str]]:
    """The tensors of what was loaded, and what was chosen and left out."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    content, notes = _states.choose(path, content, key, _is_tensor)
    left_out = [name for name, value in content.items() if not _is_tensor(value)]
    if left_out:
        notes.append(f"left out what is no tensor: {_states.some(left_out)}")
    tensors = {name: value for name, value in content.items() if _is_tensor(value)}
    unnamed = [name for name in tensors if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"{path}: tensors must be named by text, got {_states.some(unnamed)}")
    return tensors, notes


def _is_tensor(value: object) -> bool:
    return isinstance(value, _torch().Tensor)


def _info(path: Path, name: str, tensor: Any) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{path}: {name!r} is no plain tensor ({tensor.layout}, {tensor.device}, {tensor.dtype})")
    if dtype not in _DTYPES:
        raise ValueError(f"{path}: {name!r} has dtype {dtype}; known are {', '.join(_DTYPES)}")
    if tensor.dim() > 32:
        raise ValueError(f"{path}: {name!r} has {tensor.dim()} axes, the limit is 32")
    return TensorInfo(tuple(tensor.shape), _DTYPES[dtype])
