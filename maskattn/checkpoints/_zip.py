"""Hashes, metadata and provenance in the comments of a zip archive, which programs that load arrays from it skip.

Each member's comment is ``sha256:`` and the hash of its tensor; the archive's is one JSON object of the metadata, the
provenance and the seal.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from maskattn.checkpoints import _seal
from maskattn.checkpoints._base import TensorInfo

COMMENT_LIMIT = zipfile.ZIP_MAX_COMMENT
PREFIX = "sha256:"
START = b'{"metadata":'  # of the comment of an archive that this library wrote
END = struct.Struct("<4s4H2LH")  # the record that ends an archive; its last number is the length of the comment


def compose(
    path: Path,
    provenance: Mapping[str, object],
    hashes: Mapping[str, str],
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
) -> bytes:
    """The comment of an archive; ValueError where it would be longer than a zip allows."""
    sealed = json.loads(_seal.compose(provenance, hashes, infos, metadata))
    del sealed["sha256"]
    text = json.dumps({"metadata": dict(metadata), _seal.KEY: sealed}, separators=(",", ":")).encode()
    if len(text) > COMMENT_LIMIT:
        raise ValueError(
            f"{path} cannot be written: metadata and provenance take {len(text)} bytes, "
            f"the limit of a zip archive is {COMMENT_LIMIT}"
        )
    return text


def member_comment(digest: str) -> bytes:
    """The comment of the member that holds a tensor."""
    return (PREFIX + digest).encode()


def comment(file: IO[bytes]) -> bytes:
    """The comment at the end of an archive, which zipfile takes for whole where it was cut; ValueError then."""
    size = file.seek(0, 2)
    file.seek(max(0, size - COMMENT_LIMIT - END.size))
    tail = file.read()
    start = tail.rfind(b"PK\5\6")
    if start < 0 or len(tail) - start < END.size:
        raise ValueError("it has no end")
    length = END.unpack_from(tail, start)[-1]
    if length != len(tail) - start - END.size:
        raise ValueError(f"its comment of {length} bytes has {len(tail) - start - END.size}")
    return tail[start + END.size :]


def metadata(comment: bytes, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, str]:
    """The metadata of an archive, its seal among them as a ``Reader`` takes it; empty where the comment is not ours."""
    try:
        content = json.loads(comment)
        given, sealed = content["metadata"], content[_seal.KEY]
        out = {str(key): str(value) for key, value in given.items()}
        sealed["sha256"] = {name: member.comment.decode().removeprefix(PREFIX) for name, member in members.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {_seal.KEY: ""} if comment.startswith(START) else {}  # an empty seal is one that cannot be read
    return out | {_seal.KEY: json.dumps(sealed)}
