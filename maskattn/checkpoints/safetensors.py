"""safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes end to end.

Read and written here directly, without PyTorch and with bfloat16. What the format forbids is refused: overlaps, holes,
sizes that contradict shapes, bytes left over (https://github.com/huggingface/safetensors, "Format").

Where ``__metadata__`` says ``{"format": "flax"}``, transformers' Flax models join names by dots; here they are
joined by slashes, as Flax's are otherwise.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from maskattn.checkpoints import _seal
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._reader import Reader
from maskattn.checkpoints._writer import Appender, FileWriter
from maskattn.typing import NumPyArray as Array, NumPyDType

SUFFIXES = (".safetensors",)
HEADER_LIMIT = 100_000_000  # as the format's own library has it

_DTYPES: dict[str, NumPyDType] = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class SafetensorsReader(Reader):
    """One file. Bytes are read into a fresh array, so that a file cut short meanwhile is an error and not a crash."""

    def __init__(self, path: Path, verify: bool) -> None:
        self._file: IO[bytes] = open(path, "rb", buffering=0)
        try:
            infos, self._starts, metadata = _read_header(self._file, path)
            self.dotted = _dotted(infos, metadata)
            if self.dotted:
                infos = {name.replace(".", "/"): info for name, info in infos.items()}
                self._starts = {name.replace(".", "/"): at for name, at in self._starts.items()}
            super().__init__(path, infos, metadata, verify)
        except BaseException:
            self._file.close()
            raise

    def _read(self, name: str, info: TensorInfo) -> Array:
        array = self._memory.empty(info.shape, info.dtype)
        self._fill(name, array.reshape(-1).view(np.uint8).data, self._starts[name])
        return array

    def _read_part(self, name: str, info: TensorInfo, bounds: tuple[tuple[int, int], ...]) -> Array:
        array = self._memory.empty(tuple(stop - start for start, stop in bounds), info.dtype)
        behind = len(bounds)  # of these axes all is read, and so is one run with the part of the axis before them
        while bounds[behind - 1] == (0, info.shape[behind - 1]):
            behind -= 1
        strides = [math.prod(info.shape[axis + 1 :]) * info.dtype.itemsize for axis in range(len(bounds))]
        start = self._starts[name] + sum(bound[0] * stride for bound, stride in zip(bounds, strides, strict=True))
        for place in np.ndindex(array.shape[: behind - 1]):
            at = start + sum(n * stride for n, stride in zip(place, strides, strict=False))
            self._fill(name, np.ascontiguousarray(array[place]).reshape(-1).view(np.uint8).data, at)
        return array

    def _fill(self, name: str, buffer: memoryview, at: int) -> None:
        while buffer:
            count = os.preadv(self._file.fileno(), [buffer], at)
            if not count:
                raise ValueError(f"{self.path}: ends within {name!r}: the file was cut short after it was opened")
            buffer = buffer[count:]
            at += count

    def _close(self) -> None:
        self._file.close()


def unsupported(infos: Mapping[str, TensorInfo]) -> list[str]:
    """What this format cannot store."""
    reasons = [f"{n}: safetensors has no dtype {info.dtype}" for n, info in infos.items() if info.dtype not in _NAMES]
    if "__metadata__" in infos:
        reasons.append("__metadata__: a name that safetensors keeps for itself")
    return reasons


def stored_name(name: str, metadata: Mapping[str, str]) -> str:
    """What a file with this metadata calls a tensor."""
    return name.replace("/", ".") if metadata.get("format") == "flax" else name


def _dotted(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bool:
    """Whether the file's names are joined by dots and stand for ones that are joined by slashes.

    Files that this library wrote before it knew of that say ``flax`` too, and have hashes under names with dots.
    """
    if metadata.get("format") != "flax" or any("/" in name for name in infos):
        return False
    try:
        hashes = json.loads(metadata[_seal.KEY])["sha256"] if _seal.KEY in metadata else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        hashes = {}  # refused when it is parsed
    return not any("." in name for name in hashes)


class SafetensorsWriter(FileWriter):
    """One file. The hashes stand in the header, before the tensors: room is kept for them and filled in at the end."""

    parallel = True

    def _prepare(self) -> None:
        if self.metadata.get("format") == "flax" and any("." in name for name in self.infos):
            raise ValueError(f"{self.path} cannot be written: format: flax joins names by dots, and some have dots")
        rank = {dtype: -i for i, dtype in enumerate(_DTYPES.values())}
        self.order = tuple(sorted(self.infos, key=lambda name: (rank[self.infos[name].dtype], name)))
        pending = dict.fromkeys(self.infos, _seal.PENDING)
        self._header = self._compose(_seal.compose(self.provenance, pending, self.infos, self.metadata, pending=True))

    def _compose(self, sealed: str) -> bytes:
        header: dict[str, Any] = {"__metadata__": self.metadata | {_seal.KEY: sealed}}
        self._starts: dict[str, int] = {}
        end = 0
        for name in self.order:
            info = self.infos[name]
            start, end = end, end + info.nbytes
            self._starts[name] = start
            header[stored_name(name, self.metadata)] = {
                "dtype": _NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the tensors start on a multiple of 8
        if len(text) > HEADER_LIMIT:
            raise ValueError(
                f"{self.path} cannot be written: its header would have {len(text)} bytes, the limit is {HEADER_LIMIT}"
            )
        return len(text).to_bytes(8, "little") + text

    @property
    def begun(self) -> bool:
        """Whether the file exists, in its temporary place or published."""
        return self._temporary is not None

    def _begin(self) -> None:
        super()._begin()
        self._file.write(self._header)
        self._file.flush()  # from here on, every thread writes at its own place

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        return Appender(self._file.fileno(), len(self._header) + self._starts[name])

    def _complete(self) -> None:
        self._file.seek(0)
        self._file.write(self._compose(_seal.compose(self.provenance, self.hashes, self.infos, self.metadata)))


open_file, create = SafetensorsReader, SafetensorsWriter


def _read_header(file: IO[bytes], path: Path) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"{path}: not a safetensors file: a header of {length} bytes cannot lie in {size} bytes")
    if length > HEADER_LIMIT:
        raise ValueError(f"{path}: a header of {length} bytes is refused, the limit is {HEADER_LIMIT}")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file: its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file: its header is a JSON {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: __metadata__ must map names to text")
    infos: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        infos[name], (start, end) = _entry(path, name, entry)
        spans.append((start, end, name))
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise ValueError(f"{path}: {name!r} starts at byte {start}, expected {at}: tensors overlap or leave a hole")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"{path}: the header describes {at} bytes of tensors, the file has {size - 8 - length}")
    return infos, {name: 8 + length + start for start, _, name in spans}, metadata


def _entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{path}: the entry of {name!r} must have dtype, shape and data_offsets, got {entry!r:.200}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{path}: {name!r} has dtype {dtype!r:.50}; known are {', '.join(_DTYPES)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{path}: {name!r} has shape {shape!r:.100} and data_offsets {offsets!r:.100}")
    if len(shape) > 32:
        raise ValueError(f"{path}: {name!r} has {len(shape)} axes, the limit is 32")
    info = TensorInfo(tuple(shape), _DTYPES[dtype])
    if info.nbytes != offsets[1] - offsets[0]:
        raise ValueError(
            f"{path}: {name!r} of shape {shape} and dtype {dtype} needs {info.nbytes} bytes, "
            f"but its data_offsets span {offsets[1] - offsets[0]}"
        )
    return info, (offsets[0], offsets[1])


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out
