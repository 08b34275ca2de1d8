"""Several files and the index that says which tensor lies in which: ``model.safetensors.index.json``.

Those of PyTorch (``pytorch_model.bin.index.json``) and Flax (``flax_model.msgpack.index.json``) are read, not written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from maskattn._problems import Problems
from maskattn.checkpoints import msgpack, pytorch, safetensors
from maskattn.checkpoints._base import TensorInfo
from maskattn.checkpoints._memory import Memory
from maskattn.checkpoints._publish import TemporaryFolder, publishing, sync_folder
from maskattn.checkpoints._reader import Reader
from maskattn.checkpoints._writer import Writer
from maskattn.checkpoints.safetensors import SafetensorsReader, SafetensorsWriter, _no_duplicates, stored_name
from maskattn.typing import NumPyArray as Array

SUFFIXES = (".safetensors.index.json", ".bin.index.json", ".msgpack.index.json")
INDEX_LIMIT = 100_000_000


class ShardedReader(Reader):
    """All files of an index, as one mapping."""

    def __init__(self, path: Path, verify: bool) -> None:
        weight_map, metadata = _read_index(path)
        with ExitStack() as stack:
            shards: dict[str, Reader] = {}
            for file in dict.fromkeys(weight_map.values()):
                shards[file] = _OPEN[_suffix(path)](_shard(path, file), verify)
                stack.callback(shards[file].close)
            if any(isinstance(shard, SafetensorsReader) and shard.dotted for shard in shards.values()):
                weight_map = {name.replace(".", "/"): file for name, file in weight_map.items()}
            _agree(path, weight_map, shards)
            infos = {name: shards[file].infos[name] for name, file in weight_map.items()}
            super().__init__(path, infos, metadata, verify)
            for shard in shards.values():
                self.hashes |= shard.hashes
                self.metadata = shard.metadata | self.metadata
                self.provenance = self.provenance or shard.provenance
            self._shards = {name: shards[file] for name, file in weight_map.items()}
            self._files = stack.pop_all()

    def read_into(self, memory: Memory) -> None:
        for shard in self._shards.values():
            shard.read_into(memory)

    def _read_part(self, name: str, info: TensorInfo, bounds: tuple[tuple[int, int], ...]) -> Array:
        return self._shards[name]._read_part(name, info, bounds)

    def _read(self, name: str, info: TensorInfo) -> Array:
        return self._shards[name]._read(name, info)

    def _close(self) -> None:
        self._files.close()


_OPEN: dict[str, Callable[[Path, bool], Reader]] = {
    ".safetensors": SafetensorsReader, ".bin": pytorch.PyTorchReader, ".msgpack": msgpack.MsgpackReader,
}  # fmt: skip
unsupported = safetensors.unsupported


def _suffix(index: Path) -> str:
    """What the files of an index end with."""
    return Path(index.name.removesuffix(".index.json")).suffix


class ShardedWriter(Writer):
    """The files of an index, completed one by one; the index comes last, and makes them a checkpoint.

    Renaming several files is not one step, so a checkpoint that is there is never replaced: FileExistsError.
    """

    parallel = True
    _place: TemporaryFolder | None = None

    def _prepare(self) -> None:
        stem, groups = self.path.name.removesuffix(SUFFIXES[0]), _groups(self.infos, self.max_shard_size)
        self._files = [f"{stem}-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
        self._shards = [
            SafetensorsWriter(self.path.parent / file, group, self.metadata, self.provenance)
            for file, group in zip(self._files, groups, strict=True)
        ]
        self._of = {name: shard for shard in self._shards for name in shard.infos}
        self.order = tuple(name for shard in self._shards for name in shard.order)

    def _begin(self) -> None:
        self._refuse_to_replace()
        self._place = TemporaryFolder(self.path)
        for shard in self._shards:
            shard.path = self._place.place / shard.path.name

    def _begin_tensor(self, name: str) -> Callable[[memoryview], object]:
        shard = self._of[name]
        with self._lock:
            if not shard.begun:
                shard._begin()
        return shard._begin_tensor(name)

    def _end_tensor(self, name: str) -> None:
        with self._lock:
            self._of[name].hashes[name] = self.hashes[name]

    def _publish(self) -> None:
        assert self._place is not None
        if not self.infos:
            self._shards[0]._begin()
        for shard in self._shards:  # only now, since provenance may be added to until the end
            shard._publish()
        total = sum(info.nbytes for info in self.infos.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {stored_name(n, self.metadata): self._of[n].path.name for n in sorted(self.infos)},
        }
        with open(self._place.place / self.path.name, "w", encoding="utf-8") as file:
            json.dump(index, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        moved: list[Path] = []
        with publishing(self.path.parent):
            self._refuse_to_replace()
            try:
                for name in [*self._files, self.path.name]:
                    if name == self.path.name:
                        sync_folder(self.path.parent)
                    os.replace(self._place.place / name, self.path.parent / name)
                    moved.append(self.path.parent / name)
            except BaseException:
                for path in moved:
                    path.unlink(missing_ok=True)
                raise
        sync_folder(self.path.parent)

    def _discard(self) -> None:
        for shard in self._shards:
            shard._discard()
        if self._place is not None:
            self._place.discard()

    def _refuse_to_replace(self) -> None:
        if self.path.exists():
            raise FileExistsError(
                f"{self.path} exists: several files cannot be replaced in one step; remove that checkpoint, or name "
                f"another folder"
            )


open_file, create = ShardedReader, ShardedWriter


def _groups(infos: Mapping[str, TensorInfo], limit: int | None) -> list[dict[str, TensorInfo]]:
    """Tensors in their order, a new file before each that would exceed ``limit`` bytes."""
    groups: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in infos.items():
        if limit is not None and groups[-1] and size + info.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = info
        size += info.nbytes
    return groups


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    if path.stat().st_size > INDEX_LIMIT:
        raise ValueError(f"{path}: an index of {path.stat().st_size} bytes is refused, the limit is {INDEX_LIMIT}")
    try:
        index = json.loads(path.read_bytes().decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{path}: expected a weight_map of tensor names to file names")
    metadata: Any = index.get("metadata") or {}
    return weight_map, {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _shard(index: Path, file: str) -> Path:
    """The path of a file that an index names; it must lie in the index's folder, links followed.

    The one exception is Hugging Face's cache, whose ``snapshots/<commit>/`` hold links into its own ``blobs/``.
    """
    suffix = _suffix(index)
    if not file.endswith(suffix) or Path(file).name != file or "\\" in file or "\0" in file:
        raise ValueError(f"{index}: names the file {file!r}; expected a plain name ending in {suffix}")
    path = index.parent / file
    if not path.is_file():
        raise ValueError(f"{index}: names the file {file!r}, which is not there")
    folder = index.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    if path.resolve().parent not in allowed:
        raise ValueError(f"{index}: the file {file!r} is a link that leaves the folder; put the file itself there")
    return path


def _agree(path: Path, weight_map: dict[str, str], shards: Mapping[str, Reader]) -> None:
    wrong = [f"{name}: not in {file}" for name, file in weight_map.items() if name not in shards[file].infos]
    for file, shard in shards.items():
        wrong += [f"{name}: in {file}, but the index does not say so" for name in shard if weight_map.get(name) != file]
    Problems(f"{path} and its files disagree", wrong).raise_if_any()
