"""A model's numbers into a file, as it was loaded or as such are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from maskattn import checkpoints
from maskattn._contiguous import fill
from maskattn._hf_config import Value
from maskattn.arrays import dtype_name, dtype_named
from maskattn.checkpoints import TensorInfo
from maskattn.models import sentences
from maskattn.models.files import Origin, Stored, is_whole, tensors_of, users_of
from maskattn.models.forms import file_shape, published
from maskattn.models.leaves import Tensor
from maskattn.models.model import WholeModel
from maskattn.typing import Array, NumPyArray

A = TypeVar("A", bound=Array)


def origin_of(origin: Origin | None, config: Mapping[str, Value]) -> Origin:
    """What is written beside the tensors.

    Raises:
        ValueError: no config says what the model is.
    """
    if not config:
        raise ValueError("save: the model was not loaded from a checkpoint: give its config, for config.json")
    return Origin(dict(config)) if origin is None else replace(origin, config=dict(config))


def save(
    table: WholeModel,
    origin: Origin,
    arrays: Mapping[str, A],
    publish: Callable[[Tensor, A], NumPyArray],
    path: Path,
    max_shard_size: int | None = None,
) -> None:
    """Writes a folder as Hugging Face has them: config.json and model.safetensors, with the names that the file had
    that the model was loaded from, or those that were published.

    Args:
        table: the model. origin: what it was loaded from. arrays: its tensors, as the twin has them.
        publish: one of them in NumPy, in the published order of axes. path: the folder.
        max_shard_size: as in `checkpoints.create`.
    """
    tensors = tensors_of(table)
    stored = origin.stored or _new(table, tensors)
    dtypes = {name: dtype_named(dtype_name(array)) for name, array in arrays.items()}
    infos = {file: TensorInfo(each.shape, dtypes[each.made[0][0]]) for file, each in stored.items()}
    infos |= {file: TensorInfo(array.shape, array.dtype) for file, array in origin.unread.items()}

    def make(file: str) -> NumPyArray:
        if file in origin.unread:
            return origin.unread[file]
        made = stored[file].made
        if is_whole(made[0][1]):
            return publish(tensors[made[0][0]], arrays[made[0][0]])
        out = np.empty(*infos[file])
        for name, piece in made:
            fill(out[piece.there], publish(tensors[name], arrays[name])[piece.here])
        return out

    path.mkdir(parents=True, exist_ok=True)
    place = path / "model.safetensors"
    with checkpoints.create(place, infos, metadata={"format": "pt"}, max_shard_size=max_shard_size) as writer:
        writer.write_each(make)
    checkpoints.write_json(path / "config.json", sentences.write(path, origin.config))
    if origin.generation:
        checkpoints.write_json(path / "generation_config.json", origin.generation)


def _new(table: WholeModel, tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """A new file's tensors."""
    where = {name: published(table.model_type, name, tensor.shape) for name, tensor in tensors.items()}
    return {
        file: Stored(file_shape(several[-1][1], tensors[several[-1][0]].shape), tuple(several))
        for file, several in users_of(where).items()
    }
