"""Where the parameters of whole models lie on a mesh: their logical axes, and which of the mesh's divide each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maskattn.models import WholeModel
from maskattn.models.axes import Over, Rules, names_of, settled
from maskattn.models.leaves import Axis, Tensor
from maskattn.typing import NumPyArray
from maskattn_jax.types import Array

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """Where each parameter of a model lies.

    Attributes:
        mesh: with automatic axes.
        rules: of logical axes; those that are left out are not divided.
    """

    mesh: Mesh
    rules: tuple[tuple[str, Over], ...]

    @classmethod
    def of(cls, mesh: Mesh, table: WholeModel, rules: Rules | None = None) -> Places:
        """The places of a model's parameters.

        Args:
            mesh: of devices, with automatic axes.
            rules: which mesh axis divides each logical axis (`maskattn.models.axes.AXES`). None:
                axes named model, tensor, tp or mp divide layers (vocab, heads, mlp), those named fsdp the width of the
                blocks (embed); others are of the batch.

        Raises:
            TypeError, ValueError: a mesh with explicit axes, or rules for axes that there are not.
        """
        if not isinstance(mesh, Mesh):
            raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
        if set(mesh.axis_types) != {AxisType.Auto}:
            raise ValueError(
                "mesh: its axes must be automatic, got "
                f"{', '.join(str(one) for one in mesh.axis_types)}: make it with "
                f"jax.make_mesh(..., axis_types=(AxisType.Auto,) * {len(mesh.axis_names)})"
            )
        given = settled(mesh.shape, table, rules)
        return cls(mesh, tuple(given.items()))

    def axes(self, axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...]:
        """Logical axes of a parameter; None where the mesh cannot divide a size, or would by one of its axes twice."""
        made, used, rules = [], set[str](), dict(self.rules)
        for name, size in zip(axes, shape, strict=True):
            over = names_of(None if name is None else rules.get(name))
            fits = name in rules and not used & set(over) and size % _size(self.mesh, over) == 0
            used |= set(over) if fits else set()
            made.append(name if fits else None)
        return tuple(made)

    def sharding(self, axes: Sequence[Axis], shape: Sequence[int]) -> NamedSharding:
        """Where an array of these logical axes lies."""
        rules = dict(self.rules)
        spec = [None if name is None else rules[name] for name in self.axes(axes, shape)]
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def metadata(self, axes: Sequence[Axis], shape: Sequence[int]) -> dict[str, Any]:
        """What Flax's own tools read of a parameter, as `nnx.get_partition_spec`."""
        named = self.axes(axes, shape)
        return {"out_sharding": named, "sharding_rules": self.rules, "mesh": self.mesh} if any(named) else {}

    def read(self, tensor: Tensor, read: Callable[[tuple[slice, ...]], NumPyArray]) -> Array:
        """A parameter of which each device has its part, and no more is read.

        Args:
            read: a part of the tensor as published -> its numbers; each part is asked for once.
        """
        known: dict[tuple[Any, ...], NumPyArray] = {}

        def part(index: tuple[slice, ...] | None) -> NumPyArray:
            assert index is not None
            bounds = [one.indices(size)[:2] for one, size in zip(index, tensor.flax_shape, strict=True)]
            key = tuple(bounds)
            if key not in known:
                published = [slice(*bounds[tensor.order.index(axis)]) for axis in range(len(bounds))]
                known[key] = np.ascontiguousarray(read(tuple(published)).transpose(tensor.order))
            return known[key]

        return jax.make_array_from_callback(tensor.flax_shape, self.sharding(tensor.axes, tensor.flax_shape), part)


def _size(mesh: Mesh, over: Over) -> int:
    return math.prod(mesh.shape[axis] for axis in names_of(over))
