"""The parameters of a whole model by their published names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maskattn.arrays import to_numpy
from maskattn.models.leaves import Tensor
from maskattn.models.part import find
from maskattn.typing import NumPyArray
from maskattn_jax.models.modules import Block, Loop, Model
from maskattn_jax.types import Array

__all__ = ["Held", "publish"]


class Held(Mapping[str, Array]):
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

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

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


def publish(tensor: Tensor, array: Array) -> NumPyArray:
    """A parameter as published."""
    return to_numpy(array).transpose(tuple(map(tensor.order.index, range(len(tensor.order)))))
