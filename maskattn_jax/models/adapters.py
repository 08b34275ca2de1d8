"""Adapters of whole models: written as PEFT reads them, and merged into the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from maskattn.arrays import to_numpy
from maskattn.models import adapters, leaves
from maskattn.models.part import find
from maskattn_jax.models.modules import Block, Loop, Model
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
    held = _Held(model)

    def published(name: str, tensor: leaves.Tensor) -> Any:
        return to_numpy(held[name]).transpose(tuple(map(tensor.order.index, range(len(tensor.order)))))

    adapters.write(model.adapter, model.table, published, path)


def merged(model: Model) -> Model:
    """The model with its adapter in its weights: the sum of each weight and scale * up down, rounded once.

    Args:
        model: with an adapter. Its other parameters are the new one's, too.

    Raises:
        ValueError: the model has no adapter.
    """
    if model.adapter is None:
        raise ValueError("merged: the model has no adapter")
    held = _Held(model)
    linear = {f"{path}.weight": leaf for path, leaf in model.table.leaves() if isinstance(leaf, leaves.Linear)}

    def start(name: str, tensor: leaves.Tensor) -> Array:
        leaf = linear.get(name)
        if leaf is None or leaf.lora is None:
            return held[name]
        at, wide = name.removesuffix("weight"), jnp.float32
        up, down, weight = (held[f"{at}{each}"].astype(wide) for each in ("lora_B.weight", "lora_A.weight", "weight"))
        more = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST) * leaf.lora.scale
        return (weight + more).astype(held[name].dtype)

    options: dict[str, Any] = {"remat": model.remat, "scan_layers": model.scan_layers}
    return Model(adapters.without(model.table), start, model.config, **options)


class _Held:
    """The parameters of a model by their published names, as Flax has them; those of a loop one by one."""

    def __init__(self, model: Model) -> None:
        looped = dict(_looped(model))
        self._at: dict[str, tuple[Any, int | None]] = {}
        for path, leaf in model.table.leaves():
            place = next((place for place in looped if path.startswith(f"{place}.")), "")
            root, index = looped.get(place, (model, None))
            module = find(root, path.removeprefix(f"{place}.") if place else path)
            for name, tensor in leaf.tensors().items():
                own = f"{path}.{name}" if name else path
                self._at[own] = (getattr(module, tensor.flax) if name else module, index)

    def __getitem__(self, name: str) -> Array:
        parameter, index = self._at[name]
        numbers: Array = parameter[...]
        return numbers if index is None else numbers[index]


def _looped(model: Model) -> Iterator[tuple[str, tuple[Block, int]]]:
    """Of blocks that are in a loop: (place, (the block of a step, which step))."""
    for stack in model.table.stacks():
        number = 0
        while number < len(stack.places):
            module = find(model, stack.places[number])
            for n in range(module.spans if isinstance(module, Loop) else 0):
                width = len(module.phases)
                yield stack.places[number + n], (module.phases[n % width], n // width)
            number += module.spans
