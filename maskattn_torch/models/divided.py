"""Whole models on a mesh of devices: layers divided by heads and widths, and blocks whose parameters are gathered.

It imports `torch.distributed`, and so is not imported with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from maskattn._problems import Problems
from maskattn.models import Output, WholeModel
from maskattn.models.attention import Attention, Fused, Separate
from maskattn.models.axes import Rules, names_of, settled
from maskattn.models.leaves import Embedding, Linear
from maskattn.models.mlp import Gated, Halves, Plain
from maskattn.models.part import Part
from maskattn.typing import Traced
from maskattn_torch.models.modules import Model
from maskattn_torch.types import Array

__all__ = ["Places"]

#: Parts of attention that are the same for every head.
_ALIKE = ("rotary", "qk_norm", "temperature", "clip")


@dataclass(frozen=True)
class Places:
    """Where the parameters of a model lie.

    Attributes:
        layers: the devices over which layers are divided, a mesh of one axis; None: they are not.
        blocks: those over which the parameters of each block are, to be gathered when it runs; None: they are not.
        divided: the logical axes that `layers` divides.
    """

    layers: DeviceMesh | None
    blocks: DeviceMesh | None
    divided: tuple[str, ...]

    @classmethod
    def of(cls, mesh: DeviceMesh, table: WholeModel, rules: Rules | None = None) -> Places:
        """The places of a model's parameters.

        Args:
            mesh: of devices, whose axes have names.
            rules: which mesh axis divides each logical axis (`maskattn.models.axes.AXES`); None:
                as in `maskattn.models.axes.settled`. What divides "embed" gathers the parameters of each block.

        Raises:
            TypeError: no mesh. ValueError: axes without names, or rules for axes that there are not; layers that cannot
                be divided, by what they have.
        """
        if not isinstance(mesh, DeviceMesh):
            raise TypeError(f"mesh must be a DeviceMesh, got {type(mesh).__name__}")
        if mesh.mesh_dim_names is None:
            raise ValueError("mesh: its axes must have names (mesh_dim_names)")
        sizes = dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True))
        found = settled(sizes, table, rules)
        over = {name: names_of(axes) for name, axes in found.items()}
        if not (over["heads"] and over["kv_heads"]):  # heads and those of the keys are divided alike
            over["heads"] = over["kv_heads"] = ()
        gathered, layers = over.pop("embed"), {axes for axes in over.values() if axes}
        if len(gathered) > 1 or len(layers) > 1 or any(len(axes) > 1 or axes == gathered for axes in layers):
            raise ValueError(f"rules: layers are divided over one axis of a mesh, and blocks over another, got {found}")
        axis = next(iter(layers), ())
        made = cls(
            mesh[axis[0]] if axis else None,
            mesh[gathered[0]] if gathered else None,
            tuple(name for name, axes in over.items() if axes),
        )
        made._check(table)
        return made

    def _check(self, table: WholeModel) -> None:
        problems = Problems("mesh")
        if self.layers is None:
            return
        size = self.layers.size()
        for part in _parts(table):
            if isinstance(part, Attention) and "heads" in self.divided:
                config = part.config
                more = [name for name in config.parts if name not in _ALIKE]
                norm = config.qk_norm
                if norm is not None and self.blocks is not None:
                    more.append("qk_norm, with blocks that are gathered")
                if more or part.shared or config.sinks or (norm is not None and norm.scale == "per_head"):
                    problems.value(f"attention with {', '.join(more) or 'numbers of each head'} is not divided")
                if isinstance(part.inputs, Fused) and part.inputs.order == "blocks":
                    problems.value(f"{part.inputs.all.name}: queries, keys and values of one layer are not divided")
                if not isinstance(part.inputs, Fused | Separate):
                    problems.value(f"{part.out.name}: projections of {type(part.inputs).__name__} are not divided")
            elif isinstance(part, Halves):
                problems.value(f"{part.both.name}: two halves of one layer are not divided")
        known = [part for part in _parts(table) if isinstance(part, Attention | Plain | Gated)]
        divisible = {id(leaf) for part in known for _, leaf in part.leaves()}
        for path, leaf in table.leaves():
            axes = {axis for tensor in leaf.tensors().values() for axis in tensor.axes}
            if axes & set(self.divided) - {"vocab"} and id(leaf) not in divisible:
                problems.value(f"{path}: is not divided, and has {', '.join(sorted(filter(None, axes)))}")
            if leaf.adapter:
                problems.value(f"{path}: layers with an adapter are not divided")
            for name, tensor in leaf.tensors().items():
                for logical, count in zip(tensor.axes, tensor.flax_shape, strict=True):
                    if logical in self.divided and logical != "vocab" and count % size:
                        problems.value(f"{path}.{name}: {logical} {count} cannot be divided by {size} devices")
        problems.reasons = list(dict.fromkeys(problems.reasons))
        problems.raise_if_any()

    def local(self, table: WholeModel) -> WholeModel:
        """The table of one device's heads."""
        return _of_heads(table, self._size) if "heads" in self.divided else table

    def place(self, model: Model) -> None:
        """Divide a model whose parameters are on the device "meta"."""
        if self.layers is not None:
            parallelize_module(model, self.layers, dict(self._styles(model.table)))
            model.register_forward_pre_hook(_without_dropout, with_kwargs=True)
        if self.blocks is not None:
            model.register_forward_hook(lambda module, given, out: _without_views(out))
            for path, _ in model.table.blocks():
                fully_shard(model.get_submodule(path), mesh=self.blocks)
            fully_shard(model, mesh=self.blocks)

    def _styles(self, table: WholeModel) -> Iterator[tuple[str, ParallelStyle]]:
        tied = getattr(getattr(getattr(table, "head", None), "tied", None), "name", None)
        for path, leaf in table.leaves():
            if not isinstance(leaf, (Linear, Embedding)) or path == tied:
                continue
            into, out = (name in self.divided for name in leaf.axes)
            if isinstance(leaf, Embedding):
                if into and leaf.rows % self._size == 0:
                    yield path, RowwiseParallel(input_layouts=Replicate())
            elif out:
                whole = leaf.axes[1] == "vocab"
                if not whole or leaf.outputs % self._size == 0:
                    yield path, ColwiseParallel(output_layouts=Replicate() if whole else Shard(-1))
            elif into:
                yield path, RowwiseParallel()

    @property
    def _size(self) -> int:
        return 1 if self.layers is None else self.layers.size()

    def fill(self, model: Model, read: Callable[[str, tuple[slice, ...]], Array], device: torch.device) -> None:
        """Give a model that was placed its numbers.

        Args:
            read: the published name of a parameter, and a part of it as PyTorch has it -> its numbers; no more than
                this device's part is asked for.
        """
        model.to_empty(device=device)
        with torch.no_grad():
            for name, held in (*model.named_parameters(), *model.named_buffers()):
                part = self._part(held)
                target = held.to_local() if isinstance(held, DTensor) else held
                if target.numel():
                    target.copy_(read(name, part))
        if self.layers is not None and "heads" in self.divided:
            for name in _of_all_heads(model.table):
                model.get_parameter(name).register_hook(partial(_summed, self.layers))

    def _part(self, held: Array) -> tuple[slice, ...]:
        """This device's part of a parameter: layers are divided before blocks are."""
        part = [slice(0, size) for size in held.shape]
        if isinstance(held, DTensor):
            names = held.device_mesh.mesh_dim_names or ("",)
            for mesh in (self.layers, self.blocks):
                if mesh is None:
                    continue
                name = (mesh.mesh_dim_names or ("",))[0]
                placement = held.placements[names.index(name)] if name in names else Replicate()
                if placement.is_replicate():
                    continue
                axis = placement.dim  # type: ignore[attr-defined]
                start, stop = part[axis].start, part[axis].stop
                count = -(-(stop - start) // mesh.size())
                first = min(start + count * mesh.get_local_rank(), stop)
                part[axis] = slice(first, min(first + count, stop))
        return tuple(part)


def _without_dropout(model: Model, given: Any, named: dict[str, Any]) -> None:
    """Each device would draw for its own heads what the first draws for its."""
    if named.get("dropout_key") is not None:
        raise ValueError("Model: no dropout is drawn where layers are divided over devices: dropout_key must be None")


def _without_views(out: Traced) -> Traced:
    """What a model gives, none of it a view: FSDP2's hooks hang on it, and whoever writes to a view loses them."""
    if isinstance(out, torch.Tensor):
        return out if out._base is None else out.clone()
    if isinstance(out, Output):
        return replace(out, **{each.name: _without_views(getattr(out, each.name)) for each in fields(out)})
    return tuple(_without_views(one) for one in out) if type(out) is tuple else out


def _parts(held: object) -> Iterator[Part]:
    """All parts within a part, itself among them."""
    if isinstance(held, Part):
        yield held
        for each in fields(held):
            yield from _parts(getattr(held, each.name))
    elif isinstance(held, tuple):
        for one in held:
            yield from _parts(one)


def _of_all_heads(table: WholeModel) -> Iterator[str]:
    """What the heads of a layer learn together: each device's gradient is that of its own heads."""
    for path, block in table.blocks():
        for _, held in block.attention.held:
            yield from (f"{path}.{leaf.name}" for leaf in held)


def _summed(mesh: DeviceMesh, gradient: Array) -> Array:
    made = gradient.clone()
    dist.all_reduce(made, group=mesh.get_group())
    return made


def _of_heads(held: Traced, size: int) -> Traced:
    """A part whose attention has one device's heads."""
    if isinstance(held, Attention):
        heads, kv_heads = held.config.num_heads // size, held.config.num_kv_heads // size
        return replace(held, config=replace(held.config, num_heads=heads, num_kv_heads=kv_heads))
    if isinstance(held, Part):
        return replace(held, **{each.name: _of_heads(getattr(held, each.name), size) for each in fields(held)})
    if type(held) is tuple:
        return tuple(_of_heads(one, size) for one in held)
    return held
