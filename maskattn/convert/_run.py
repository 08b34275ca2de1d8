"""Carrying a plan out: tensor by tensor, in memory that does not grow with the checkpoint, published whole or not.

Two threads each read, transpose, hash and write one tensor after the other, as far as memory allows; the source's files
are hashed beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from maskattn import checkpoints
from maskattn.checkpoints import Reader, TensorInfo
from maskattn.checkpoints._seal import PENDING
from maskattn.convert._plan import BUFFERED, Move, Plan, in_order

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int], None]
"""Called with the name of a tensor that was written, and its bytes; from two threads."""

WRITER_BYTES = 128 * 2**20
THREADS = 2
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
        for check in plan.checks:
            check(reader.__getitem__)

        def convert(move: Move, read: Callable[[str], Array]) -> None:
            array = move.array.evaluate(read)
            if plan.dtype is not None:
                _refuse_overflow(move, array, read)
            writer.write(move.target, array)
            if progress is not None:
                progress(move.target, array.nbytes)

        each(list(in_order(plan, writer.order)), plan.infos, reader, convert)
        for name, digest in hashes.items():
            writer.provenance["source"]["files"][name]["sha256"] = digest.result()
    return writer.path


def each(
    moves: list[Move],
    infos: Mapping[str, TensorInfo],
    reader: Mapping[str, Array],
    work: Callable[[Move, Callable[[str], Array]], None],
) -> None:
    """Calls ``work`` with every move and a function that reads its sources, on two threads.

    A tensor that several moves need is read once, and forgotten after the last of them. No move is begun that would
    bring the memory above that of ``allowed``.
    """
    source, stop = Source(moves, infos, reader), threading.Event()

    def run() -> None:
        while not stop.is_set():
            move = source.begin()
            if move is None:
                return
            try:
                work(move, source.read)
            except BaseException:
                stop.set()
                raise
            finally:
                source.end(move)

    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(run) for _ in range(THREADS)]
    for thread in running:
        thread.result()


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
    """An upper estimate of the bytes held at once: the tensors in hand, and what the writer holds."""
    needed = sorted((_needed(move, plan.infos) for move in plan.moves), reverse=True)
    return max(needed[0], min(sum(needed[:THREADS]), allowed(plan.infos))) + WRITER_BYTES if needed else WRITER_BYTES


def allowed(infos: Mapping[str, TensorInfo]) -> int:
    """The bytes that moves in hand may need together: two of the largest tensor, and some more."""
    return 2 * max((info.nbytes for info in infos.values()), default=0) + BUFFERED


def _needed(move: Move, infos: Mapping[str, TensorInfo]) -> int:
    """Bytes held while a tensor is made: its sources, and itself where it is no view of one."""
    views = all(what in ("reshape", "transpose") or what.startswith("take") for what in move.array.operations)
    if any(what.startswith("stack") for what in move.array.operations):  # its sources are read one by one
        return move.array.nbytes + max((infos[name].nbytes for name in move.array.sources), default=0)
    return sum(infos[name].nbytes for name in move.array.sources) + (0 if views else move.array.nbytes)


class Source:
    """The tensors that moves are made of: each read once, and held until its last use; which move may begin when."""

    def __init__(self, moves: list[Move], infos: Mapping[str, TensorInfo], reader: Mapping[str, Array]) -> None:
        self._reader, self._infos, self._limit = reader, infos, allowed(infos)
        self._waiting, self._running, self._bytes = deque(moves), 0, 0
        self._uses = Counter(name for move in moves for name in move.array.sources)
        self._changed = threading.Condition()
        self.held: dict[str, Future[Array]] = {}

    def begin(self) -> Move | None:
        """The next move, as soon as there is memory for it; None where there is none left."""
        with self._changed:
            while self._waiting:
                needed = _needed(self._waiting[0], self._infos)
                if not self._running or self._bytes + needed <= self._limit:
                    self._running, self._bytes = self._running + 1, self._bytes + needed
                    return self._waiting.popleft()
                self._changed.wait()
        return None

    def read(self, name: str) -> Array:
        """The tensor ``name``, from the file or still held."""
        with self._changed:
            coming = self.held.get(name)
            if coming is None:
                mine = self.held[name] = Future()
        if coming is not None:
            return coming.result()
        try:
            mine.set_result(self._reader[name])
        except BaseException as error:
            mine.set_exception(error)
        return mine.result()

    def end(self, move: Move) -> None:
        """What was read for ``move`` and nothing after it is forgotten."""
        with self._changed:
            for name in move.array.sources:
                self._uses[name] -= 1
                if not self._uses[name]:
                    self.held.pop(name, None)
            self._running, self._bytes = self._running - 1, self._bytes - _needed(move, self._infos)
            self._changed.notify_all()


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
