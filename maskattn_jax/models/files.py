"""Whole models out of files, and into them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskattn._contiguous import fill
from maskattn.arrays import dtype_named, to_numpy
from maskattn.checkpoints import KEPT
from maskattn.convert import open_model
from maskattn.models import files
from maskattn.models.leaves import Tensor
from maskattn.models.part import find
from maskattn.typing import NumPyArray
from maskattn_jax.models.modules import Model
from maskattn_jax.types import Array, DType

__all__ = ["load", "save"]


def load(path: str | os.PathLike[str], *, dtype: DType | None = None, param_dtype: DType | None = None) -> Model:
    """A model out of a checkpoint: each tensor is read once, into the parameter that it becomes.

    Args:
        path: a folder as Hugging Face has them, whatever `maskattn convert` wrote, or a .gguf file.
        dtype: of the computation; None: that of the parameters.
        param_dtype: of the parameters; None: as the file has them.

    Raises:
        FileNotFoundError: nothing is there, or no config.json beside it.
        ValueError: a model type that no table describes; tensors that are missing, that the model does not have, or of
            another shape: all in one error.
    """
    wanted = None if param_dtype is None else dtype_named(np.dtype(param_dtype).name)

    def make(name: str, tensor: Tensor, array: NumPyArray) -> Array:
        if wanted is not None and files.is_floating(array.dtype) and array.dtype != wanted:
            array = array.astype(wanted)
        turned = array.transpose(tensor.order)
        if not turned.flags.c_contiguous:
            turned = KEPT.empty(turned.shape, array.dtype)
            fill(turned, array.transpose(tensor.order))
        made = jax.device_put(turned)
        if made.dtype != turned.dtype:
            raise ValueError(
                f"{name}: is {turned.dtype}, which JAX has only with jax_enable_x64; or give a param_dtype"
            )
        return made

    with open_model(path) as source:
        table, arrays, origin = files.load(source, make, wanted)
    return Model(table, lambda name, tensor: arrays.pop(name), origin.config, origin=origin, dtype=dtype)


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
        ValueError: the model was not loaded, and no config is given. OSError: it cannot be written.
    """
    origin = files.origin_of(model.origin, config or model.config)
    held: dict[str, Array] = {}
    for path_, leaf in model.table.leaves():
        for name, tensor in leaf.tensors().items():
            module = find(model, path_)
            held[f"{path_}.{name}" if name else path_] = (getattr(module, tensor.flax) if name else module)[...]
    files.save(model.table, origin, held, _publish, Path(path), max_shard_size)


def _publish(tensor: Tensor, array: Array) -> NumPyArray:
    return to_numpy(array).transpose(tuple(map(tensor.order.index, range(len(tensor.order)))))
