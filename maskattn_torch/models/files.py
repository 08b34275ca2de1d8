"""Whole models out of files, and into them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskattn.arrays import dtype_named, to_numpy, to_torch
from maskattn.convert import open_model
from maskattn.models import adapters, files, saving
from maskattn.models.adapters import Adapter
from maskattn.models.axes import Rules
from maskattn.models.leaves import Tensor
from maskattn.models.parts import Parts
from maskattn.typing import NumPyArray
from maskattn_torch.models.modules import Model
from maskattn_torch.types import Array, DType

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["load", "save"]


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DType | None = None,
    param_dtype: DType | None = None,
    mesh: DeviceMesh | None = None,
    rules: Rules | None = None,
    remat: bool = False,
    adapter: str | os.PathLike[str] | Adapter | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Model:
    """A model out of a checkpoint, in evaluation mode: each tensor is read once, into the parameter that it becomes.

    Args:
        path: a folder as Hugging Face has them (of transformers' former Flax classes, too), whatever `maskattn convert`
            wrote, or a .gguf file.
        dtype: of the computation; None: that of the parameters.
        param_dtype: of the parameters; None: as the file has them.
        mesh: of devices, each of which reads its part of every parameter, and no more where the file has the published
            form; None: this device has all.
        rules: which mesh axis divides each logical axis (`maskattn.models.axes.AXES`); None: axes
            named model, tensor, tp or mp divide layers, those named fsdp the parameters of each block (`fully_shard`).
        remat: as in `Model`.
        adapter: a folder of PEFT, or `maskattn.models.adapters.new`: LoRA beside linear layers, in float32 at least;
            its parameters alone are trained.
        progress: called with the name and the bytes of each tensor that was taken out of the file; with a mesh, of each
            parameter.

    Raises:
        FileNotFoundError: nothing is there, or no config.json beside it.
        ValueError: a model type that no table describes; tensors that are missing, that the model does not have, or of
            another shape: all in one error; an adapter or a mesh that does not fit, or a part of one that is not read.
    """
    found = adapters.of(adapter)
    wanted = None if param_dtype is None else dtype_named(str(param_dtype).removeprefix("torch."))

    def make(name: str, tensor: Tensor, array: NumPyArray) -> Array:
        made = to_torch(array)
        return made.to(param_dtype) if wanted is not None and made.is_floating_point() else made

    options: dict[str, Any] = {"dtype": dtype, "remat": remat, "adapter": found}
    with open_model(path) as opened:
        source = opened if found is None else found.beside(opened)
        if mesh is not None:
            return _placed(Parts(source, wanted), mesh, rules, progress, options)
        table, arrays, origin = files.load(source, make, wanted, progress)

    def start(name: str, tensor: Tensor) -> Array:
        if name in arrays:
            return arrays.pop(name)
        assert found is not None
        return to_torch(adapters.start(found, name, tensor))

    table = table if found is None else found.on(table)
    return Model(table, start, origin.config, origin=origin, **options).eval()


def _placed(
    parts: Parts,
    mesh: DeviceMesh,
    rules: Rules | None,
    progress: Callable[[str, int], None] | None,
    options: dict[str, Any],
) -> Model:
    """A model on a mesh."""
    from maskattn_torch.models.divided import Places  # which imports torch.distributed

    found: Adapter | None = options["adapter"]
    table = parts.table if found is None else found.on(parts.table)
    places, own, known = Places.of(mesh, table, rules), files.tensors_of(parts.table), files.tensors_of(table)

    def empty(name: str, tensor: Tensor) -> Array:
        kind = parts.dtype(name).name if name in own else "float32"
        return torch.empty(tensor.shape, dtype=getattr(torch, kind), device="meta")

    def read(name: str, index: tuple[slice, ...]) -> Array:
        if name in own:
            part = to_torch(parts.read(name, index))
            if progress is not None:
                progress(name, math.prod(own[name].shape) * part.itemsize)
            return part
        assert found is not None
        return to_torch(adapters.start(found, name, known[name])[index])

    model = Model(places.local(table), empty, parts.origin.config, origin=parts.origin, **options).eval()
    places.place(model)
    places.fill(model, read, torch.device(mesh.device_type))
    return model


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Writes a folder as Hugging Face has them, config.json and model.safetensors: of a model that was loaded the
    same names, shapes, dtypes and bytes.

    Args:
        model: that is written; where it lies on a mesh, by its first device, and all must call this.
        path: the folder, which is made where there is none.
        config: what config.json says; None: as when it was loaded.
        max_shard_size: bytes; a checkpoint with more becomes several files and an index.

    Raises:
        ValueError: the model was not loaded, and no config is given; it has an adapter. OSError: it cannot be written.
    """
    if model.adapter is not None:
        raise ValueError(
            "save: the model has an adapter: `save_adapter` writes that, `merged` puts it into the weights"
        )
    origin = saving.origin_of(model.origin, config or model.config)
    held, writes = _whole(model.state_dict())
    if writes:
        saving.save(model.table, origin, held, _publish, Path(path), max_shard_size)


def _whole(held: Mapping[str, Array]) -> tuple[dict[str, Array], bool]:
    """Tensors of which each device may have a part, and whether this device writes them: of several the first."""
    spread = [x for x in held.values() if hasattr(x, "full_tensor")]
    made = {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in held.items()}
    return made, not spread or torch.distributed.get_rank() == 0


def _publish(tensor: Tensor, array: Array) -> NumPyArray:
    return to_numpy(array)
