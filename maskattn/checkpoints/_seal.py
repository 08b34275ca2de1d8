"""What maskattn adds to a file: SHA-256 of every tensor, where the file came from, and a seal over both.

A tensor's hash is that of its little-endian bytes in C order, nothing else, so that other tools can compute it. The
seal covers names, shapes, dtypes, the other metadata and the hashes, so that damage to a header is seen too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskattn.checkpoints._base import TensorInfo

KEY = "maskattn"
PENDING = "0" * 64
"""As long as a digest: room for one that is not known yet."""


def compose(
    provenance: Mapping[str, object] | None,
    hashes: Mapping[str, str],
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    *,
    pending: bool = False,
) -> str:
    """The text that a file keeps under ``KEY``. With ``pending`` the seal is left open, at the same length."""
    content = {"provenance": dict(provenance or {}), "sha256": {name: hashes[name] for name in infos}}
    seal = PENDING if pending else _digest(content, infos, metadata)
    return json.dumps(content | {"seal": seal}, separators=(",", ":"))


def parse(
    path: Path, text: str, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], verify: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """The hashes and the provenance in ``text``.

    With ``verify`` a ValueError where they do not belong to this file; without, what cannot be read is left out.
    """
    try:
        content = json.loads(text)
        hashes, provenance, seal = content["sha256"], content["provenance"], content["seal"]
        whole = isinstance(provenance, dict) and isinstance(hashes, dict)
        whole = whole and all(isinstance(value, str) for value in hashes.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        if verify:
            raise ValueError(f"{path}: its hashes cannot be read, the file is damaged (verify=False reads it as it is)")
        return {}, {}
    if verify and (
        seal != _digest({"provenance": provenance, "sha256": hashes}, infos, metadata) or set(hashes) != set(infos)
    ):
        missing, extra = sorted(set(hashes) - set(infos)), sorted(set(infos) - set(hashes))
        which = f": {missing[0]!r} is missing" if missing else f": {extra[0]!r} was added" if extra else ""
        raise ValueError(
            f"{path}: the header is not the one that was written{which}; the file is damaged, or was changed by a "
            f"program that kept the hashes (verify=False reads it as it is)"
        )
    return hashes, provenance


def _digest(content: Mapping[str, object], infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str:
    outline = [[name, list(infos[name].shape), infos[name].dtype.name] for name in sorted(infos)]
    text = json.dumps([content, outline, dict(metadata)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
