"""DTensors, as far as this twin looks into them: what this device has of one, and how one is made of such parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor as Array

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

__all__ = [
    "PLAIN",
    "axis_of",
    "beside",
    "by_parts",
    "from_local",
    "gathered",
    "heads_of",
    "is_spread",
    "mean",
    "of_heads",
    "owned",
    "part_of",
    "placed_as",
    "replicated",
    "tensors",
]

PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_spread(*arrays: object) -> bool:
    """Whether one of the arrays is a DTensor: costs no import, and next to no time where they are plain tensors."""
    return any([type(x) not in PLAIN and hasattr(x, "placements") for x in arrays])


def by_parts(x: Any, function: Callable[[Array, Sequence[int], Sequence[int]], Array]) -> DTensor:
    """function(this device's part of x, its first indices, the shape of x), a part of the same shape, sharded as x."""
    mesh = x.device_mesh
    placements = [p if axis_of(p) is not None else tensors().Replicate() for p in x.placements]
    first = [part_of(mesh, placements, axis, size)[0] for axis, size in enumerate(x.shape)]
    local = x.redistribute(mesh, placements).to_local(grad_placements=placements)
    return from_local(function(local, first, x.shape), mesh, placements, x.shape)


def part_of(mesh: DeviceMesh, placements: Sequence[Placement], axis: int, size: int) -> tuple[int, int]:
    """(first, count) of this device along an axis, as DTensors are cut: the last devices may have fewer, or none."""
    first: int = 0
    coordinate: Any = mesh.get_coordinate()
    for n, p in enumerate(placements):
        if axis_of(p) == axis:
            most = -(-size // mesh.size(n))
            low = min(most * coordinate[n], size)
            first, size = first + low, min(most, size - low)
    return first, size


def axis_of(placement: Any) -> int | None:
    """The axis that a placement shards; None of any other, those that stride among them."""
    return placement.dim if type(placement).__name__ == "Shard" else None


def from_local(local: Array, mesh: DeviceMesh, placements: Sequence[Placement], shape: Sequence[int]) -> DTensor:
    """A DTensor of a shape, of this device's part: its axes lie in memory in the order of the part's."""
    strides: tuple[int, ...] = local.stride()
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    if strides != _strides(local.shape, order):
        local, order = local.contiguous(), list(range(len(shape)))
    return tensors().DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=_strides(shape, order)
    )


def replicated(x: Array, mesh: DeviceMesh) -> DTensor:
    """A DTensor of a tensor that is the same on every device."""
    return tensors().DTensor.from_local(x, mesh, [tensors().Replicate()] * mesh.ndim, run_check=False)


def beside(x: Array, like: Any) -> Array:
    """A tensor that is the same on every device, as a DTensor where `like` is one: PyTorch mixes no two kinds."""
    return replicated(x, like.device_mesh) if is_spread(like) and not is_spread(x) else x


def gathered(x: Any) -> Any:
    """The whole of a DTensor, on every device; anything else as it is."""
    return x.full_tensor() if is_spread(x) else x


def mean(x: Any, axes: Sequence[int]) -> Array:
    """The mean over the last axes, which are kept; of a DTensor that is divided along them the parts' sums are added
    up, and nothing else is sent."""
    if not is_spread(x):
        made: Array = x.mean(axes, keepdim=True)
        return made
    total = x.sum(axes, keepdim=True)
    whole = [tensors().Replicate() if p.is_partial() else p for p in total.placements]
    made = total.redistribute(placements=whole) / math.prod(x.shape[axis] for axis in axes)
    return made


def heads_of(x: Any) -> Array:
    """This device's heads of keys or values [B, L, K, D]; a plain tensor as it is.

    Raises:
        ValueError: they are divided along another axis, or are sums yet to be made: a cache is one of whole rows.
    """
    if not is_spread(x):
        plain: Array = x
        return plain
    if any(not p.is_replicate() and axis_of(p) != 2 for p in x.placements):
        raise ValueError(
            f"attention: with a cache, keys and values may be divided by heads alone (Shard(2)), got {x.placements}"
        )
    local: Array = x.to_local()
    return local


def of_heads(x: Array, like: Any) -> Array:
    """What `heads_of` gave [B, S, K, D], as a DTensor divided as `like` is; where that is plain, as it is."""
    if not is_spread(like):
        return x
    return from_local(x, like.device_mesh, like.placements, (*x.shape[:2], *like.shape[2:]))


def placed_as(x: Array, like: DTensor) -> DTensor:
    """A DTensor of a tensor that is the same on every device, sharded as another is."""
    return replicated(x.to(like.device), like.device_mesh).redistribute(like.device_mesh, like.placements)


def owned(module: torch.nn.Module, out: Array) -> Array:
    """The output as no view where FSDP2 wraps the module: its hooks hang on it, and writing to a view loses them."""
    return out.clone() if out._base is not None and hasattr(type(module), "unshard") else out


def _strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The strides of axes that lie in memory one within the other, the outermost first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], step = step, step * max(1, shape[axis])
    return tuple(strides)


def tensors() -> Any:
    """torch.distributed.tensor, which takes most of a second to import: whoever has DTensors has done so."""
    import torch.distributed.tensor as module

    return module
