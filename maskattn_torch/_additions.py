"""What was added to a plain layer: an adapter, a hook, a parametrization."""

from __future__ import annotations

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["has_additions"]


def has_additions(layer: nn.Module, plain: tuple[type[nn.Module], ...] = (nn.Linear,)) -> str:
    """What makes a layer more than its weight and bias, in words; "" of a plain one."""
    if type(layer) not in plain:
        return type(layer).__name__
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "one with hooks"
    if "forward" in layer.__dict__:
        return "one whose forward was replaced"
    sharded: bool = is_traceable_wrapper_subclass(layer.weight)
    return f"one whose weight is a {type(layer.weight).__name__}" if sharded else ""
