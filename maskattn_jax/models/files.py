"""Whole models out of files, and into them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maskattn._contiguous import fill
from maskattn.arrays import dtype_named
from maskattn.checkpoints import KEPT
from maskattn.convert import open_model
from maskattn.models import adapters, files, saving
from maskattn.models.adapters import Adapter
from maskattn.models.axes import Rules
from maskattn.models.leaves import Tensor
from maskattn.models.parts import Parts
from maskattn.typing import NumPyArray, NumPyDType
from maskattn_jax.models.held import Held, publish
from maskattn_jax.models.meshes import Places
from maskattn_jax.models.modules import Model
from maskattn_jax.types import Array, DType

__all__ = ["load", "save"]


def load(
    path: str | os.PathLike[str],
    *,
    dtype: DType | None = None,
    param_dtype: DType | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    scan_layers: bool = False,
    remat: bool = False,
    adapter: str | os.PathLike[str] | Adapter | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Model:
    """A model out of a checkpoint: each tensor is read once, into the parameter that it becomes.

    Args:
        path: a folder as Hugging Face has them (of transformers' former Flax classes, too), whatever `maskattn convert`
            wrote, or a .gguf file.
        dtype: of the computation; None: that of the parameters.
        param_dtype: of the parameters; None: as the file has them.
        mesh: of devices, with automatic axes, each of which reads its part of every parameter, and no more where the
            file has the published form; None: one device has all.
        rules: which mesh axis divides each logical axis (`maskattn.models.axes.AXES`); None: axes
            named model, tensor, tp or mp divide layers, those named fsdp the width of the blocks.
        scan_layers, remat: as in `Model`.
        adapter: a folder of PEFT, or `maskattn.models.adapters.new`: LoRA beside linear layers, whose parameters are
            `nnx.LoRAParam`, in float32 at least.
        progress: called with the name and the bytes of each tensor that was taken out of the file; with a mesh, of each
            parameter.

    Raises:
        FileNotFoundError: nothing is there, or no config.json beside it.
        ValueError: a model type that no table describes; tensors that are missing, that the model does not have, or of
            another shape: all in one error; an adapter or a mesh that does not fit, or a part of one that is not read.
    """
    found = adapters.of(adapter)
    wanted = None if param_dtype is None else dtype_named(np.dtype(param_dtype).name)

    def make(name: str, tensor: Tensor, array: NumPyArray) -> Array:
        if wanted is not None and files.is_floating(array.dtype) and array.dtype != wanted:
            array = array.astype(wanted)
        turned = array.transpose(tensor.order)
        if not turned.flags.c_contiguous:
            turned = KEPT.empty(turned.shape, array.dtype)
            fill(turned, array.transpose(tensor.order))
        return _of_dtype(name, jax.device_put(turned), turned.dtype)

    options: dict[str, Any] = {"dtype": dtype, "scan_layers": scan_layers, "remat": remat, "adapter": found}
    with open_model(path) as opened:
        source = opened if found is None else found.beside(opened)
        if mesh is not None:
            return _placed(Parts(source, wanted), mesh, rules, progress, options)
        table, arrays, origin = files.load(source, make, wanted, progress)

    def start(name: str, tensor: Tensor) -> Array:
        if name in arrays:
            return arrays.pop(name)
        assert found is not None
        return jax.device_put(adapters.start(found, name, tensor).transpose(tensor.order))

    table = table if found is None else found.on(table)
    return Model(table, start, origin.config, origin=origin, **options)


def _placed(
    parts: Parts,
    mesh: Mesh,
    rules: Rules | None,
    progress: Callable[[str, int], None] | None,
    options: dict[str, Any],
) -> Model:
    """A model on a mesh."""
    found: Adapter | None = options["adapter"]
    table = parts.table if found is None else found.on(parts.table)
    places, own = Places.of(mesh, table, rules), files.tensors_of(parts.table)

    def start(name: str, tensor: Tensor) -> Array:
        if name in own:
            made = places.read(tensor, lambda index: parts.read(name, index))
            if progress is not None:
                progress(name, made.nbytes)
            return _of_dtype(name, made, parts.dtype(name))
        assert found is not None
        whole = adapters.start(found, name, tensor)
        return places.read(tensor, lambda index: whole[index])

    return Model(table, start, parts.origin.config, origin=parts.origin, places=places, **options)


def _of_dtype(name: str, array: Array, dtype: NumPyDType) -> Array:
    if array.dtype != dtype:
        raise ValueError(f"{name}: is {dtype}, which JAX has only with jax_enable_x64; or give a param_dtype")
    return array


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
        model: that is written.
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
    saving.save(model.table, origin, Held(model), publish, Path(path), max_shard_size)
