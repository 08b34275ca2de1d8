"""Hashes, metadata and provenance in the comments of a zip archive, which programs that load arrays from it skip.

Each member's comment is ``sha256:`` and the hash of its tensor; the archive's is one JSON object of the metadata, the
provenance and the seal.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskattn.checkpoints import _seal
from maskattn.checkpoints._base import TensorInfo

COMMENT_LIMIT = zipfile.ZIP_MAX_COMMENT
PREFIX = "sha256:"


def compose(
    path: Path,
    provenance: Mapping[str, Any],
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


def metadata(comment: bytes, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, str]:
    """The metadata of an archive, its seal among them as a ``Reader`` takes it; empty where the comment is not ours."""
    try:
        content = json.loads(comment)
        found, sealed = content["metadata"], content[_seal.KEY]
        out = {str(key): str(value) for key, value in found.items()}
        sealed["sha256"] = {name: member.comment.decode().removeprefix(PREFIX) for name, member in members.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return out | {_seal.KEY: json.dumps(sealed)}
