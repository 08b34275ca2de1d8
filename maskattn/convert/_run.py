"""Carrying a plan out: tensor by tensor, in memory that does not grow with the checkpoint, published whole or not.

Two threads each read, transpose, hash and write one tensor after the other, as far as memory allows; the source's files
are hashed beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskattn import checkpoints
from maskattn.checkpoints import PENDING, Reader, TensorInfo
from maskattn.convert import _tables
from maskattn.convert._hints import refuse_a_shard
from maskattn.convert._memory import THREADS, allowed, needed
from maskattn.convert._plan import Move, Plan, in_order
from maskattn.convert._provenance import buffers_as_json
from maskattn.typing import NumPyArray as Array

Progress = Callable[[str, int], None]
"""Called with the name of a tensor that was written, and its bytes; from two threads."""

_CHUNK = 2**20  # hashed while it is in the cache


def run(
    plan: Plan,
    reader: Reader,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Path:
    """Writes the checkpoint that ``plan`` describes; ``reader`` is the source it was made from.

    Returns where it is: ``path``, or the index of several files. It has the hash of every tensor and says where it
    comes from: the source's files and their hashes, both forms, casts, steps, versions. ``metadata`` (None: what
    transformers expects of safetensors) and ``max_shard_size`` are those of ``checkpoints.create``; ``progress`` is
    called with the name of each tensor that was written, and its bytes, from two threads. The folder of ``path`` is
    made where there is none. ``force``: ``path`` may be one of the source's files, which is then replaced, and the
    source a shard.

    Raises:
        ValueError: the source is one of several shards, or ``path`` one of the source's files; the format cannot hold a
            tensor; a value is not what the plan takes it to be; a cast made a finite number infinite; a damaged source.
        OSError: it cannot be written. What was at ``path`` is then still there.
    """
    path = Path(path)
    if not force:
        refuse_a_shard(reader.path)
        _refuse_source(path, reader)
    about = provenance(plan, reader)
    metadata = _format(plan, path) if metadata is None else metadata
    options: dict[str, Any] = {"metadata": metadata, "provenance": about, "max_shard_size": max_shard_size}
    with (
        _folder(path.parent),
        checkpoints.create(path, plan.outputs, **options) as writer,
        ThreadPoolExecutor(1) as hasher,
    ):
        hashes = {name: hasher.submit(_hash_file, file) for name, file in _files(reader).items()}
        plan.check(reader.__getitem__)

        def convert(move: Move, read: Callable[[str], Array]) -> None:
            array = move.array.evaluate(read)
            writer.write(move.target, array)
            if progress is not None:
                progress(move.target, array.nbytes)

        each(list(in_order(plan, writer.order)), plan.infos, reader, convert)
        for name, digest in hashes.items():
            writer.provenance["source"]["files"][name]["sha256"] = digest.result()
    return writer.path


carry_out = run
"""Its name until this version, under which ``maskattn.carry_out`` had it."""


def each(
    moves: list[Move],
    infos: Mapping[str, TensorInfo],
    reader: Mapping[str, Array],
    work: Callable[[Move, Callable[[str], Array]], None],
) -> None:
    """Calls ``work`` with every move and a function that reads its sources, on two threads.

    A tensor that several moves need is read once, and forgotten after the last of them; but what is stacked reads its
    parts by itself, and forgets each. No move is begun that would bring the memory above that of ``allowed``.
    """
    source, stop = Source(moves, infos, reader), threading.Event()

    def take_turns() -> None:
        while not stop.is_set():
            move = source.begin()
            if move is None:
                return
            try:
                work(move, source.of(move))
            except BaseException:
                stop.set()
                raise
            finally:
                source.end(move)

    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(take_turns) for _ in range(THREADS)]
    checkpoints.SHARED.clear()
    for thread in running:
        thread.result()


def provenance(plan: Plan, reader: Reader) -> dict[str, Any]:
    """What a converted checkpoint says of where it comes from; the files' hashes are filled in while it is written."""
    tables, family = dict(plan.record.get("tables", {})), plan.forms[0].family.name
    if plan.tables:
        tables[family] = _tables.pack(plan.tables, reader.__getitem__)
    files = {name: {"bytes": file.stat().st_size, "sha256": PENDING} for name, file in _files(reader).items()}
    source: dict[str, Any] = {"form": plan.source, "whole": not plan.forms[0].attention_only, "files": files}
    if reader.provenance:
        source["provenance"] = dict(reader.provenance)
    return {
        "source": source,
        "target": {"form": plan.target, "whole": not plan.forms[1].attention_only},
        "dtype": "kept" if plan.dtype is None else f"floating-point tensors cast to {plan.dtype}",
        "steps": [str(step) for step in plan.steps],
        "dropped": dict(plan.dropped),
        "kept": list(plan.kept),
        "buffers": buffers_as_json(plan.buffers),
        **plan.record,
        "tables": tables,
        "heads": {name: [layer.config.num_heads, layer.config.num_kv_heads] for name, layer in plan.layers.items()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in ("maskattn", "numpy")},
    }


class Source:
    """The tensors that moves are made of: each read once, and held until its last use; which move may begin when."""

    def __init__(self, moves: list[Move], infos: Mapping[str, TensorInfo], reader: Mapping[str, Array]) -> None:
        self._reader, self._infos, self._limit = reader, infos, allowed(infos)
        self._waiting, self._running, self._bytes = deque(moves), 0, 0
        self._uses = Counter(name for move in moves if not move.array.parts for name in move.array.sources)
        self._changed = threading.Condition()
        self.held: dict[str, Future[Array]] = {}

    def begin(self) -> Move | None:
        """The next move, as soon as there is memory for it; None where there is none left."""
        with self._changed:
            while self._waiting:
                more = needed(self._waiting[0].array, self._infos)
                if not self._running or self._bytes + more <= self._limit:
                    self._running, self._bytes = self._running + 1, self._bytes + more
                    return self._waiting.popleft()
                self._changed.wait()
        return None

    def of(self, move: Move) -> Callable[[str], Array]:
        """How ``move`` reads: what is read is held for those after it; not the parts of a stack, which are many."""
        return self._reader.__getitem__ if move.array.parts else self.read

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
            for name in () if move.array.parts else move.array.sources:
                self._uses[name] -= 1
                if not self._uses[name]:
                    self.held.pop(name, None)
            self._running, self._bytes = self._running - 1, self._bytes - needed(move.array, self._infos)
            self._changed.notify_all()


def _files(reader: Reader) -> dict[str, Path]:
    """The files of a checkpoint, by their names within it."""
    path = reader.path
    if path.is_dir():
        return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    if not path.name.endswith(".index.json"):
        return {path.name: path}
    shards = set(json.loads(path.read_bytes())["weight_map"].values())  # opening it has checked them
    return {name: path.with_name(name) for name in (path.name, *sorted(shards))}


def _refuse_source(path: Path, reader: Reader) -> None:
    """The target is none of the source's files, whatever link or spelling leads to it."""
    if not path.exists():
        return
    files = [*_files(reader).values(), reader.path]
    files += [file.with_name(file.name + ".maskattn.json") for file in files]
    if any(file.exists() and path.samefile(file) for file in files):
        raise ValueError(
            f"{path} is the source itself, which would be replaced: name another file (--force replaces it)"
        )


def _format(plan: Plan, path: Path) -> dict[str, str]:
    """What the ``__metadata__`` of safetensors says to transformers, where it is true."""
    form = plan.forms[1]
    if not path.name.endswith((".safetensors", ".safetensors.index.json")):
        return {}
    if form.style == "torch":
        return {"format": "pt"}
    theirs = form.layout is None and form.family.name.startswith("flax-") and not plan.kept
    return {"format": "flax"} if theirs else {}


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Makes a folder and those it lies in; where nothing came of it, they are gone again."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    within = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not within.is_dir():
        raise NotADirectoryError(f"{within} is a file, and no folder to write into")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # another program has put something there
            for place in made:
                place.rmdir()
        raise


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
