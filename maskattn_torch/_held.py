"""What the parts of a layer learn, as parameters of a module: made, and read by their canonical names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.modules.parameters import TABLE_SPREAD, parameters
from maskattn_torch.types import Array, Device, DType

__all__ = ["Held", "begin", "hold"]

_LAYOUT = layouts.get("maskattn-torch")


class Held(NamedTuple):
    """Where a parameter is: in the module at `path`, by the name `name`; `canonical` gives its canonical form.

    `is_layer`: whether that module is an `nn.Linear`.
    """

    path: str
    name: str
    canonical: Callable[[Any, AttentionConfig], Any]
    is_layer: bool

    def read(self, module: nn.Module, config: AttentionConfig) -> Array:
        """The parameter, in its canonical form."""
        stored = getattr(module.get_submodule(self.path), self.name)
        return cast(Array, self.canonical(stored, config))


def hold(module: nn.Module, config: AttentionConfig, device: Device, dtype: DType | None) -> dict[str, Held]:
    """Give a module the parameters of its parts; where each is, by canonical names.

    Matrices are those of an `nn.Linear`, which begin as PyTorch's do; `begin` is for the others.
    """
    held = {}
    for canonical, parameter in parameters(config).items():
        extra = _LAYOUT.place(canonical, parameter.shape, config)
        assert extra is not None, canonical
        path, _, name = extra.name.rpartition(".")
        is_layer = f"{canonical.rpartition('.')[0]}.kernel" in parameters(config)
        held[canonical] = Held(path, name, extra.to_canonical, is_layer)
        if name == "bias" and f"{canonical.rpartition('.')[0]}.kernel" in held:
            continue
        if canonical.endswith(".kernel"):
            bias = canonical.removesuffix("kernel") + "bias" in parameters(config)
            layer = nn.Linear(parameter.shape[0], parameter.shape[1], bias=bias, device=device, dtype=dtype)
            _within(module, path.rpartition(".")[0]).add_module(path.rpartition(".")[2], layer)
            continue
        shape = extra.stored_shape(parameter.shape, config)
        made = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        _within(module, path).register_parameter(name, made)
    return held


def begin(module: nn.Module, held: dict[str, Held], config: AttentionConfig) -> None:
    """Give the parameters of parts their first numbers, but for those of an `nn.Linear`."""
    for canonical, parameter in parameters(config).items():
        if held[canonical].is_layer:
            continue
        stored = getattr(module.get_submodule(held[canonical].path), held[canonical].name)
        if parameter.begins is None:
            nn.init.normal_(stored, std=TABLE_SPREAD)
        else:
            nn.init.constant_(stored, parameter.begins)


def _within(module: nn.Module, path: str) -> nn.Module:
    """The module at a path, which is made of empty ones where it is not there."""
    for name in filter(None, path.split(".")):
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    return module
