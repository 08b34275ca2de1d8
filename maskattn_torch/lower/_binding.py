"""Binding: the data of masks and biases as PyTorch tensors, checked against sizes; and both as pytrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch.utils import _pytree

from maskattn import lowering
from maskattn._fields import Spec, dtype_name, on_subclass, peek
from maskattn._lookup import wide
from maskattn._pairs import Pairwise
from maskattn.arrays import to_torch
from maskattn_torch._devices import is_spread
from maskattn_torch._hosted import placed
from maskattn_torch.types import Array, Device, Given

Node = TypeVar("Node", bound=Spec)

_AS_THEY_ARE = (torch.bool, torch.int64, torch.float32)


def register() -> None:
    """Make every mask and bias a pytree, those defined later included; its leaves are its data."""
    on_subclass(_register)


def bind(node: Node, *, device: Device = None) -> Node:
    """`node`, a mask or bias, with its data as tensors on `device` (by default NumPy's on the CPU, tensors stay).

    Raises:
        TypeError: data are neither of NumPy nor of PyTorch.
    """
    return node.map_data(lambda array: _as_array(array, device))


def check(node: Pairwise, batch: int, heads: int, q_len: int, kv_len: int) -> None:
    """Compare the sizes batch, heads, q_len and kv_len with the data of `node`, a mask or bias.

    Raises:
        ValueError: they conflict; every conflict is named.
    """
    lowering.check(node, (batch, heads, q_len, kv_len), readable)


def arange(node: Spec, *, device: Device = None) -> Callable[[int], Array]:
    """Makes the indices 0, 1, ... on `device` (default: where the data of a bound mask or bias are)."""
    if device is None:
        device = device_of(node)
    return lambda size: torch.arange(size, device=device)


def device_of(node: Spec) -> Device:
    """Where the first tensor of a bound mask or bias is; None where it has none."""
    tensors: list[Array] = []
    node.map_data(tensors.append)
    return tensors[0].device if tensors else None


def readable(array: Given) -> Given:
    """The array in NumPy where reading it waits for no device; else as it is, and only its shape is checked."""
    if torch.compiler.is_compiling():
        return torch.as_tensor(array)  # the compiler cannot branch on values, of NumPy arrays neither
    if not isinstance(array, torch.Tensor) or array.device.type != "cpu":
        return array
    numbers = peek(array) if array.ndim == 1 else None
    return array if numbers is None else numbers


def _as_array(array: Given, device: Device) -> Array:
    if isinstance(device, torch.device) and device.type == "cuda":
        copied = placed(array, device)
        if copied is not None:
            return copied
    if isinstance(array, torch.Tensor):
        if type(array) is not torch.Tensor and is_spread(array):
            raise TypeError("the data of a mask or bias are a DTensor, but query, key and value are plain tensors")
        array = array if device is None or array.device == device else array.to(device)
        return array if array.dtype in _AS_THEY_ARE else wide(array)
    given: object = array
    if not isinstance(given, np.ndarray):
        got = f"{type(given).__name__} of dtype {dtype_name(array)}"
        raise TypeError(f"data must be of NumPy or PyTorch here, got {got}")
    if torch.compiler.is_compiling():
        return wide(torch.as_tensor(array, device=device))
    return wide(to_torch(array) if device is None else to_torch(array).to(device, non_blocking=True))


def _register(cls: type[Spec]) -> None:
    _pytree.register_pytree_node(cls, Spec.flatten, lambda leaves, structure: cls.unflatten(structure, leaves))
