"""Adapters of whole models: written as PEFT reads them, and merged into the weights."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from maskattn.models import adapters, leaves
from maskattn_jax.models.held import Held, publish
from maskattn_jax.models.modules import Model
from maskattn_jax.types import Array

__all__ = ["merged", "save_adapter"]


def save_adapter(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes the adapter of a model as a folder that PEFT reads: one that was loaded has the same names, shapes, dtypes
    and bytes as before.

    Args:
        model: which was loaded with `adapter`.
        path: the folder, which is made where there is none.

    Raises:
        ValueError: the model has no adapter. OSError: it cannot be written.
    """
    if model.adapter is None:
        raise ValueError("save_adapter: the model has no adapter")
    held = Held(model)

    adapters.write(model.adapter, model.table, lambda name, tensor: publish(tensor, held[name]), path)


def merged(model: Model) -> Model:
    """The model with its adapter in its weights: the sum of each weight and scale * up down, rounded once.

    Args:
        model: with an adapter. Its other parameters are the new one's, too.

    Raises:
        ValueError: the model has no adapter.
    """
    if model.adapter is None:
        raise ValueError("merged: the model has no adapter")
    held = Held(model)
    linear = {f"{path}.weight": leaf for path, leaf in model.table.leaves() if isinstance(leaf, leaves.Linear)}

    def start(name: str, tensor: leaves.Tensor) -> Array:
        leaf = linear.get(name)
        if leaf is None or leaf.lora is None:
            return held[name]
        at, wide = name.removesuffix("weight"), jnp.promote_types(held[name].dtype, jnp.float32)
        up, down, weight = (held[f"{at}{each}"].astype(wide) for each in ("lora_B.weight", "lora_A.weight", "weight"))
        more = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST) * leaf.lora.scale
        return (weight + more).astype(held[name].dtype)

    options: dict[str, Any] = {"origin": model.origin, "dtype": model.dtype, "places": model.places}
    options |= {"remat": model.remat, "scan_layers": model.scan_layers}
    return Model(adapters.without(model.table), start, model.config, **options)
