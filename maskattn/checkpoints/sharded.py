"""Several safetensors files and the index that says which tensor lies in which: ``model.safetensors.index.json``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from maskattn.checkpoints._base import Array, Reader, TensorInfo
from maskattn.checkpoints.safetensors import SafetensorsReader, _no_duplicates

SUFFIXES = (".safetensors.index.json",)
INDEX_LIMIT = 100_000_000


class ShardedReader(Reader):
    """All files of an index, as one mapping."""

    def __init__(self, path: Path) -> None:
        weight_map, metadata = _read_index(path)
        with ExitStack() as stack:
            shards = {file: SafetensorsReader(_shard(path, file)) for file in dict.fromkeys(weight_map.values())}
            for shard in shards.values():
                stack.callback(shard.close)
            _agree(path, weight_map, shards)
            infos = {name: shards[file].infos[name] for name, file in weight_map.items()}
            super().__init__(path, infos, metadata)
            self._shards = {name: shards[file] for name, file in weight_map.items()}
            self._files = stack.pop_all()

    def _read(self, name: str, info: TensorInfo) -> Array:
        return self._shards[name][name]

    def _close(self) -> None:
        self._files.close()


def open_file(path: Path) -> Reader:
    """Opens an index and every file it names; ValueError where they do not agree."""
    return ShardedReader(path)


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
    if not file.endswith(".safetensors") or Path(file).name != file or "\\" in file or "\0" in file:
        raise ValueError(f"{index}: names the file {file!r}; expected a plain name ending in .safetensors")
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


def _agree(path: Path, weight_map: dict[str, str], shards: dict[str, SafetensorsReader]) -> None:
    found = [f"{name}: not in {file}" for name, file in weight_map.items() if name not in shards[file].infos]
    for file, shard in shards.items():
        found += [f"{name}: in {file}, but the index does not say so" for name in shard if weight_map.get(name) != file]
    if found:
        raise ValueError("\n  ".join([f"{path} and its files disagree:", *found]))
