"""As much of msgpack as arrays need: headers, packed; and the structure of a file, without its arrays' bytes.

https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, Any

ARRAY, COMPLEX, NUMPY_SCALAR = 1, 2, 3  # flax.serialization's extension types
CHUNKED = "__msgpack_chunked_array__"
DEPTH_LIMIT = 100
NODE_LIMIT = 1_000_000
TEXT_LIMIT = 100_000


def pack(value: bool | int | str) -> bytes:
    """A bool, an int that is not negative, or a text, as briefly as msgpack can say it."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return bytes([value]) if value < 0x80 else _sized(value, {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF})
    text = value.encode()
    if len(text) < 32:
        return bytes([0xA0 | len(text)]) + text
    return _sized(len(text), {1: 0xD9, 2: 0xDA, 4: 0xDB}) + text


def pack_map_header(length: int) -> bytes:
    """What precedes the pairs of a map."""
    return bytes([0x80 | length]) if length < 16 else _sized(length, {2: 0xDE, 4: 0xDF})


def pack_prefix(shape: tuple[int, ...], dtype: str, size: int) -> bytes:
    """What precedes the ``size`` bytes of an array."""
    inner = bytes([0x93, *([0x90 | len(shape)] if len(shape) < 16 else [0xDC, 0, len(shape)])])
    inner += b"".join(pack(n) for n in shape) + pack(dtype) + _sized(size, {1: 0xC4, 2: 0xC5, 4: 0xC6})
    length = len(inner) + size
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(length)
    outer = bytes([fixed]) if fixed else _sized(length, {1: 0xC7, 2: 0xC8, 4: 0xC9})
    return outer + bytes([ARRAY]) + inner


def _sized(value: int, codes: dict[int, int]) -> bytes:
    """``value`` in the fewest bytes for which there is a code, after it."""
    for width, code in codes.items():
        if value < 1 << 8 * width:
            return bytes([code]) + value.to_bytes(width, "big")
    raise ValueError(f"{value} is too large for msgpack")


class Scanner:
    """The structure of a file: maps as dict, arrays as list, and tensors as (type, shape, dtype, start, bytes).

    Text, numbers and None stand for themselves; binary data and unknown extensions are passed over. Every fault is a
    ValueError; nothing is read that is not asked for, and no more made than the file has room for.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._at, self._nodes = file, path, 0, 0
        self._size = os.fstat(file.fileno()).st_size

    def scan(self) -> Any:
        """The one value of the file."""
        value = self._value(0)
        if self._at != self._size:
            raise self._fault(f"{self._size - self._at} bytes are left over")
        return value

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"{self._path}: not a msgpack file of arrays: {what} at byte {self._at}")

    def _take(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise self._fault(f"{count} bytes are announced, {self._size - self._at} are there")
        self._file.seek(self._at)
        data = self._file.read(count)
        if len(data) != count:
            raise self._fault("the file ends early")
        self._at += count
        return data

    def _skip(self, count: int) -> None:
        if count > self._size - self._at:
            raise self._fault(f"{count} bytes are announced, {self._size - self._at} are there")
        self._at += count

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _value(self, depth: int) -> Any:
        self._nodes += 1
        if depth > DEPTH_LIMIT or self._nodes > NODE_LIMIT:
            raise self._fault("nested too deep" if depth > DEPTH_LIMIT else "too many entries")
        code = self._number(1)
        if code < 0x80:
            return code
        if code < 0x90 or code in (0xDE, 0xDF):
            return self._map(code & 15 if code < 0x90 else self._number(2 << code - 0xDE), depth)
        if code < 0xA0 or code in (0xDC, 0xDD):
            length = code & 15 if code < 0xA0 else self._number(2 << code - 0xDC)
            return [self._value(depth + 1) for _ in range(length)]
        if code < 0xC0 or 0xD9 <= code <= 0xDB:
            return self._text(code & 31 if code < 0xC0 else self._number(1 << code - 0xD9))
        if 0xC4 <= code <= 0xC6:
            self._skip(self._number(1 << code - 0xC4))
            return b""
        if 0xC7 <= code <= 0xC9:
            return self._extension(self._number(1 << code - 0xC7))
        if 0xD4 <= code <= 0xD8:
            return self._extension(1 << code - 0xD4)
        return self._plain(code)

    def _plain(self, code: int) -> Any:
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if 0xCA <= code <= 0xD3:
            kind = "fdBHIQbhiq"[code - 0xCA]
            return struct.unpack(">" + kind, self._take(struct.calcsize(kind)))[0]
        if code >= 0xE0:
            return code - 256
        raise self._fault(f"the code {code:#x}")

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for _ in range(length):
            key = self._value(depth + 1)
            if not isinstance(key, (str, int)):
                raise self._fault(f"a key that is {type(key).__name__}")
            if str(key) in out:
                raise self._fault(f"the key {str(key)!r:.100} twice")
            out[str(key)] = self._value(depth + 1)
        return out

    def _text(self, length: int) -> str:
        if length > TEXT_LIMIT:
            raise self._fault(f"a text of {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._fault("a text that is not UTF-8") from None

    def _extension(self, length: int) -> Any:
        kind = self._number(1)
        end = self._at + length
        if end > self._size:
            raise self._fault(f"{length} bytes are announced, {self._size - self._at} are there")
        if kind not in (ARRAY, NUMPY_SCALAR):
            self._at = end
            return b""
        if self._number(1) != 0x93:
            raise self._fault("an array that is no (shape, dtype, bytes)")
        shape = self._value(DEPTH_LIMIT - 1)
        dtype = self._value(DEPTH_LIMIT)
        code = self._number(1)
        size = self._number(1 << code - 0xC4) if 0xC4 <= code <= 0xC6 else -1
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and isinstance(dtype, str)
        if not whole or size < 0 or self._at + size != end:
            raise self._fault("an array whose shape, dtype and bytes do not fit its length")
        start = self._at
        self._at = end
        return kind, tuple(shape), dtype, start, size
