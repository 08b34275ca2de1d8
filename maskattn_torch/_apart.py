"""A fused projection as three layers, which are saved and loaded as one: for who divides each by its own heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor as Array, nn

from maskattn_torch import _devices

__all__ = ["Apart"]


class Apart(nn.Module):
    """`q`, `k` and `v`, whose rows one nn.Linear had in this order.

    In a state dict they are that one layer, `weight` and `bias`: the same names and numbers. Where they are DTensors,
    `state_dict` gathers them, and so has to be called in every process.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, fused: nn.Linear, rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.in_features, self.out_features = fused.in_features, fused.out_features
        biases = [None] * 3 if fused.bias is None else fused.bias.detach().split(self.rows)
        for name, weight, bias in zip("qkv", fused.weight.detach().split(self.rows), biases, strict=True):
            layer = nn.Linear(fused.in_features, len(weight), bias is not None, device="meta", dtype=weight.dtype)
            layer.weight = _parameter(weight, fused.weight)
            layer.register_parameter("bias", None if bias is None else _parameter(bias, fused.bias))
            self.add_module(name, layer)
        self.train(fused.training)
        self.register_state_dict_post_hook(_join)
        self.register_load_state_dict_pre_hook(_divide)

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """q, k and v."""
        return self.q, self.k, self.v

    @property
    def weight(self) -> Array:
        """The weight of the fused layer, gathered: no parameter."""
        return _joined([layer.weight for layer in self.layers])

    @property
    def bias(self) -> Array | None:
        """The bias of the fused layer, gathered: no parameter."""
        return None if self.q.bias is None else _joined([layer.bias for layer in self.layers])

    def forward(self, query: Array, key: Array, value: Array) -> tuple[Array, ...]:
        """Each input through its layer."""
        return tuple([layer(x) for layer, x in zip(self.layers, (query, key, value), strict=True)])


def _parameter(part: Array, of: Array) -> nn.Parameter:
    return nn.Parameter(part.clone(), requires_grad=of.requires_grad)


def _join(module: nn.Module, state: dict[str, Array], prefix: str, metadata: object) -> None:
    for name in ("weight", "bias"):
        keys = [f"{prefix}{part}.{name}" for part in "qkv"]
        if all(key in state for key in keys):
            state[prefix + name] = _joined([state.pop(key) for key in keys])


def _divide(module: Apart, state: dict[str, Array], prefix: str, *rest: object) -> None:
    for name in ("weight", "bias"):
        if prefix + name not in state:
            continue
        whole = _devices.gathered(state.pop(prefix + name))
        if len(whole) != sum(module.rows):
            state[prefix + name] = whole  # which is then reported as one that is not expected
            continue
        for part, layer, rows in zip("qkv", module.layers, whole.split(module.rows), strict=True):
            own = getattr(layer, name)
            state[f"{prefix}{part}.{name}"] = _devices.placed_as(rows, own) if _devices.is_spread(own) else rows


def _joined(parts: list[Array]) -> Array:
    """The parts one after the other; DTensors as one that every device has whole."""
    if not _devices.is_spread(*parts):
        return torch.cat(parts)
    first: Any = parts[0]
    return _devices.replicated(torch.cat([_devices.gathered(x.detach()) for x in parts]), first.device_mesh)
