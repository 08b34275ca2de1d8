"""Tensor parallelism of the attention modules: a style for `torch.distributed.tensor.parallel.parallelize_module`.

It imports `torch.distributed`, and so is not imported with the package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor as Array, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from maskattn.modules.parameters import parameters
from maskattn_torch._apart import Apart
from maskattn_torch._devices import gathered, owned
from maskattn_torch.multihead import MultiHeadAttention
from maskattn_torch.types import Answer

__all__ = ["HeadParallel"]

#: What a module is called with.
Inputs: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
_INPUTS = ("query", "key", "value", "relative", "x")  # `x` is the input of the seed module


class HeadParallel(ParallelStyle):
    """The heads of a `MultiHeadAttention` (or `Attention`) divided over the devices of a mesh of one axis.

    Each device computes queries, keys and values of its own heads, attends with them, and multiplies with its columns
    of the output projection; one all-reduce adds up what they give, and one in the backward pass their gradients. Where
    the key/value heads cannot be divided, every device computes all of them, and reads those of its own heads.

    The rows of a fused `qkv` are divided within q, k and v: it becomes three layers that are saved and loaded as one,
    so the names and numbers of a state dict stay. Masks, biases and dropout mean what they mean on one device.

        parallelize_module(block, mesh["model"], {"attn": HeadParallel(), "mlp.up": ColwiseParallel(), ...})

    Args:
        input_layouts: where the inputs are, if they are no DTensors: Replicate(), or Shard(1) of sequence parallelism,
            which gathers them.
        output_layouts: where the output is to be: Replicate(), or Shard(1), which scatters the sum.
        use_local_output: whether the output is this device's tensor, or a DTensor.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        self.input_layouts = Replicate() if input_layouts is None else input_layouts
        self.output_layouts = Replicate() if output_layouts is None else output_layouts
        self.use_local_output = use_local_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        where = type(self).__name__
        if not isinstance(module, MultiHeadAttention):
            raise TypeError(f"{where}: expected a MultiHeadAttention of maskattn_torch, got {type(module).__name__}")
        config, size = module.config, device_mesh.size()
        if device_mesh.ndim != 1:
            raise ValueError(
                f"{where}: expected a mesh of one axis, as mesh['model'] is, got one of {device_mesh.ndim}"
            )
        if not config.project:
            raise ValueError(f"{where}: a module with project=False has no parameters that could be divided")
        if config.num_heads % size:
            raise ValueError(f"{where}: num_heads {config.num_heads} cannot be divided by {size} devices")
        query, *keys = self._layers(module)
        rows = Replicate() if config.num_kv_heads % size else Shard(0)
        for layer, placed in ((query, Shard(0)), *((layer, rows) for layer in keys)):
            for name in dict(layer.named_parameters(recurse=False)):
                self._place(layer, name, device_mesh, placed)
        for name in dict(module.proj.named_parameters(recurse=False)):
            self._place(module.proj, name, device_mesh, Shard(1) if name == "weight" else Replicate())
        self._place_parts(module, device_mesh, rows)
        module.register_forward_pre_hook(self._inputs(device_mesh), with_kwargs=True)
        module.register_forward_hook(self._output(device_mesh))
        return module

    def _layers(self, module: Any) -> tuple[nn.Module, ...]:
        """The layers of query, key and value; a fused one is taken apart."""
        if not module.fused:
            return module.q_proj, module.k_proj, module.v_proj
        if not isinstance(module.qkv, Apart):
            if type(module.qkv) is not nn.Linear:
                got = type(module.qkv).__name__
                raise TypeError(f"{type(self).__name__}: qkv must be a plain nn.Linear, got {got}")
            module.qkv = Apart(module.qkv, module.rows)
        layers: tuple[nn.Module, ...] = module.qkv.layers
        return layers

    def _place_parts(self, module: MultiHeadAttention, mesh: DeviceMesh, rows: Placement) -> None:
        """Make DTensors of what the parts learn; `rows` is where the key/value heads are."""
        for canonical, parameter in parameters(module.config).items():
            held, placed = module._held[canonical], Replicate() if parameter.heads is None else rows
            if parameter.heads is not None and (parameter.heads[0] == "query" or rows.is_shard()):
                axis = parameter.heads[1]
                placed = Shard(1 - axis if held.is_layer and held.name == "weight" else axis)
            self._place(module.get_submodule(held.path), held.name, mesh, placed)

    def _place(self, module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
        """Make a DTensor of a module's own parameter."""
        parameter = getattr(module, name)
        placed = distribute_tensor(parameter, mesh, [placement], src_data_rank=self.src_data_rank)
        setattr(module, name, nn.Parameter(placed, requires_grad=parameter.requires_grad))

    def _inputs(self, mesh: DeviceMesh) -> Callable[..., Inputs]:
        def hook(module: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> Inputs:
            made: dict[int, DTensor] = {}  # an input that is given twice stays one

            def moved(name: str, x: object) -> object:
                if name not in _INPUTS or not isinstance(x, Array):
                    return x
                if id(x) not in made:
                    layout = Replicate() if name == "relative" else self.input_layouts
                    spread = x if isinstance(x, DTensor) else DTensor.from_local(x, mesh, [layout])
                    made[id(x)] = spread.redistribute(mesh, [Replicate()])
                return made[id(x)]

            names = list(inspect.signature(type(module).forward).parameters)[1:]
            placed = tuple(moved(name, x) for name, x in zip(names, given, strict=False))
            return placed, {name: moved(name, x) for name, x in named.items()}

        return hook

    def _output(self, mesh: DeviceMesh) -> Callable[..., Answer]:
        def hook(module: nn.Module, given: object, found: DTensor | tuple[DTensor, ...]) -> Answer:
            output, *others = found if isinstance(found, tuple) else (found,)
            placed = output.redistribute(mesh, [self.output_layouts])
            made = owned(module, placed.to_local() if self.use_local_output else placed)
            if self.use_local_output:  # weights and log-sum-exp of all heads; a cache is this device's
                others = [gathered(x) for x in others]
            return (made, *others) if others else made

        return hook
