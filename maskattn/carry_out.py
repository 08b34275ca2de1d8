"""Carrying a plan out: tensor by tensor, in memory that does not grow with the checkpoint, published whole or not.

While one tensor is transposed, the next is read in a second thread, and the writer hashes and writes the last in a
third; the source's files are hashed beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from maskattn import checkpoints
from maskattn.checkpoints import Reader
from maskattn.checkpoints._seal import PENDING
from maskattn.plan import BUFFERED, Move, Plan, in_order

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int], None]
"""Called with the name of a tensor that was handed to the writer, and its bytes."""

WRITER_BYTES = 128 * 2**20
_CHUNK = 2**24


def carry_out(
    plan: Plan,
    reader: Reader,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the checkpoint that ``plan`` describes; ``reader`` is the source it was made from.

    Returns where it is: ``path``, or the index of several files. It has the hash of every tensor and says where it
    comes from: the source's files and their hashes, both forms, casts, steps, versions.

    Raises:
        ValueError: the format cannot hold a tensor; a value is not what the plan takes it to be; a cast made a finite
            number infinite; a damaged source. OSError: it cannot be written. What was at ``path`` is then still there.
    """
    about = provenance(plan, reader)
    options: dict[str, Any] = {"metadata": metadata, "provenance": about, "max_shard_size": max_shard_size}
    with checkpoints.create(path, plan.outputs, **options) as writer, ThreadPoolExecutor(1) as hasher:
        hashes = {name: hasher.submit(_hash_file, file) for name, file in _files(reader).items()}
        moves = list(in_order(plan, writer.order))
        with Source(reader, moves, plan) as source:
            for check in plan.checks:
                check(reader.__getitem__)
            for move in moves:
                array = move.array.evaluate(source.read)
                if plan.dtype is not None:
                    _refuse_overflow(move, array, source.read)
                writer.write(move.target, array)
                if progress is not None:
                    progress(move.target, array.nbytes)
                del array
                source.release(move)
        for name, digest in hashes.items():
            writer.provenance["source"]["files"][name]["sha256"] = digest.result()
    return writer.path


def provenance(plan: Plan, reader: Reader) -> dict[str, Any]:
    """What a converted checkpoint says of where it comes from; the files' hashes are filled in while it is written."""
    files = {name: {"bytes": file.stat().st_size, "sha256": PENDING} for name, file in _files(reader).items()}
    source: dict[str, Any] = {"form": plan.source, "files": files}
    if reader.provenance:
        source["provenance"] = dict(reader.provenance)
    return {
        "source": source,
        "target": {"form": plan.target},
        "dtype": "kept" if plan.dtype is None else f"floating-point tensors cast to {plan.dtype}",
        "steps": [str(step) for step in plan.steps],
        "dropped": dict(plan.dropped),
        "kept": list(plan.kept),
        "buffers": plan.buffers.as_json(),
        "prefixes": dict(plan.prefixes),
        "heads": {name: [layer.config.num_heads, layer.config.kv_heads] for name, layer in plan.layers.items()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in ("maskattn", "numpy")},
    }


def peak(plan: Plan) -> int:
    """An upper estimate of the bytes held at once: the tensors in hand, one read ahead, what the writer holds."""
    largest = max((info.nbytes for info in plan.infos.values()), default=0)
    held = 0
    for move in plan.moves:
        sources = sum(plan.infos[name].nbytes for name in move.array.sources)
        held = max(held, sources + _made(move))
    return max(held, min(2 * largest, largest + BUFFERED)) + WRITER_BYTES


def _made(move: Move) -> int:
    """Bytes that making a tensor takes beside its sources: none where it is a view of one."""
    views = all(what in ("reshape", "transpose") or what.startswith("take") for what in move.array.operations)
    return 0 if views else move.array.nbytes


class Source:
    """Reads each tensor once, the next one ahead, and forgets it after its last use."""

    def __init__(self, reader: Reader, moves: list[Move], plan: Plan) -> None:
        self._reader, self._infos = reader, plan.infos
        self._uses: dict[str, int] = {}
        for move in moves:
            for name in move.array.sources:
                self._uses[name] = self._uses.get(name, 0) + 1
        self._next: Iterator[str] = iter(list(self._uses))
        self.held: dict[str, Array] = {}
        self._ahead: dict[str, Future[Array]] = {}
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Source:
        self._read_ahead()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def read(self, name: str) -> Array:
        """The tensor ``name``, from the file or still held."""
        if name not in self.held:
            while name not in self._ahead:
                self._read_ahead(force=True)
            self.held[name] = self._ahead.pop(name).result()
            self._read_ahead()
        return self.held[name]

    def release(self, move: Move) -> None:
        """What was read for ``move`` and nothing after it is forgotten."""
        for name in move.array.sources:
            self._uses[name] -= 1
            if not self._uses[name]:
                self.held.pop(name, None)
        self._read_ahead()

    def _read_ahead(self, force: bool = False) -> None:
        """Begins reading the next tensors, as far as ``BUFFERED`` bytes allow; one at least where it is needed now."""
        while force or self._waiting() < BUFFERED:
            name = next(self._next, None)
            if name is None:
                return
            self._ahead[name] = self._thread.submit(self._reader.__getitem__, name)
            force = False

    def _waiting(self) -> int:
        return sum(self._infos[name].nbytes for name in self._ahead)


def _refuse_overflow(move: Move, array: Array, read: Callable[[str], Array]) -> None:
    """A narrower type may turn a finite number into infinity; that is damage, not rounding."""
    if np.isfinite(array).all():
        return
    before = sum(int(np.isinf(read(name)).sum()) for name in move.array.sources)
    after = int(np.isinf(array).sum())
    if after > before:
        raise ValueError(f"{move.target}: {after - before} finite numbers are too large for {array.dtype}")


def _files(reader: Reader) -> dict[str, Path]:
    """The files of a checkpoint, by their names within it."""
    path = reader.path
    if path.is_dir():
        return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    if not path.name.endswith(".index.json"):
        return {path.name: path}
    shards = set(json.loads(path.read_bytes())["weight_map"].values())  # opening it has checked them
    return {name: path.with_name(name) for name in (path.name, *sorted(shards))}


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
