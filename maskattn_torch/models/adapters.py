"""Adapters of whole models: written as PEFT reads them, and merged into the weights."""

from __future__ import annotations

import os
from typing import Any

import torch

from maskattn.arrays import to_numpy
from maskattn.models import adapters, leaves
from maskattn_torch.models.files import _whole
from maskattn_torch.models.modules import Model
from maskattn_torch.types import Array

__all__ = ["merged", "save_adapter"]


def save_adapter(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes the adapter of a model as a folder that PEFT reads: one that was loaded has the same names, shapes, dtypes
    and bytes as before.

    Args:
        model: which was loaded with `adapter`; where it lies on a mesh its first device writes, and all must call this.
        path: the folder, which is made where there is none.

    Raises:
        ValueError: the model has no adapter. OSError: it cannot be written.
    """
    if model.adapter is None:
        raise ValueError("save_adapter: the model has no adapter")
    own = {path for path, leaf in model.table.leaves() if leaf.adapter}
    named = dict(model.named_parameters())
    held, writes = _whole({name: x for name, x in named.items() if {name, name.rpartition(".")[0]} & own})
    if writes:
        adapters.write(model.adapter, model.table, lambda name, _: to_numpy(held[name]), path)


def merged(model: Model) -> Model:
    """The model with its adapter in its weights: the sum of each weight and scale * up down, rounded once.

    Args:
        model: with an adapter. Its other parameters are the new one's, too.

    Raises:
        ValueError: the model has no adapter, or lies on a mesh.
    """
    if model.adapter is None:
        raise ValueError("merged: the model has no adapter")
    if any(hasattr(x, "full_tensor") for x in model.parameters()):
        raise ValueError("merged: the model lies on a mesh: save its adapter, and load it beside a whole model")
    held, linear = dict(model.state_dict()), _linear(model)

    def start(name: str, tensor: leaves.Tensor) -> Array:
        leaf = linear.get(name)
        if leaf is None or leaf.lora is None:
            return held[name]
        at = name.removesuffix("weight")
        wide = torch.promote_types(held[name].dtype, torch.float32)
        up, down, weight = (held[f"{at}{each}"].to(wide) for each in ("lora_B.weight", "lora_A.weight", "weight"))
        more = (up @ down) * leaf.lora.scale
        return (weight + (more.T if leaf.turned else more)).to(held[name].dtype)

    options: dict[str, Any] = {"origin": model.origin, "dtype": model.dtype, "remat": model.remat}
    return Model(adapters.without(model.table), start, model.config, **options).train(model.training)


def _linear(model: Model) -> dict[str, leaves.Linear]:
    return {f"{path}.weight": leaf for path, leaf in model.table.leaves() if isinstance(leaf, leaves.Linear)}
