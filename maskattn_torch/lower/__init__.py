"""Masks and biases as PyTorch tensors, and as pytrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.utils import _pytree

from maskattn._fields import Array, Spec, dtype_name, on_subclass, peek
from maskattn._pairs import AXES, grid
from maskattn.biases import Additive, Bias, DenseBias, TableBias
from maskattn.masks import Full, Mask
from maskattn.masks._core import evaluate, require_mask
from maskattn_torch.lower.backends import to_block_mask

__all__ = ["allowed", "bias", "bind", "check", "register", "to_additive", "to_block_mask", "to_dense"]

_REGISTERED: set[type[Spec]] = set()


def register() -> None:
    """Make every mask and bias a pytree, those defined later included; its leaves are its data."""
    on_subclass(_register)


def bind(node: Any, *, device: Any = None) -> Any:
    """The mask or bias with its data as tensors on `device` (default: NumPy data on the CPU, tensors where they are).

    Raises:
        TypeError: data are neither of NumPy nor of PyTorch.
    """
    return node.map_data(lambda array: _as_array(array, device))


def allowed(mask: Mask | None, batch: int, heads: int, q_len: int, kv_len: int, *, device: Any = None) -> Array | None:
    """Where the mask allows: bool, rank 4, broadcastable to [batch, heads, q_len, kv_len]. True = may attend.

    Axes that the mask does not read have size 1. None where everything is allowed.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    if mask is None:
        return None
    check(mask, batch, heads, q_len, kv_len)
    if isinstance(mask, Full):
        return None
    mask = bind(mask, device=device)
    return evaluate(mask, (batch, heads, q_len, kv_len), _arange(mask, device))


def bias(bias: Bias | None, batch: int, heads: int, q_len: int, kv_len: int, *, device: Any = None) -> Array | None:
    """The bias as a float tensor, rank 4, broadcastable to [batch, heads, q_len, kv_len].

    Axes that the bias does not read have size 1. A DenseBias is only reshaped: gradients flow to its array, and
    to the table of a TableBias, summed in one order for every framework.

    Raises:
        ValueError: the sizes conflict with the bias's data.
    """
    if bias is None:
        return None
    check(bias, batch, heads, q_len, kv_len)
    bias = bind(bias, device=device)
    if isinstance(bias, DenseBias):
        return bias.array.reshape(bias.shape)
    shape = (batch, heads, q_len, kv_len)
    if isinstance(bias, Additive):
        forbidden = evaluate(bias.mask, shape, _arange(bias, device)) ^ True
        return forbidden.to(torch.float32) * bias.value
    b, h, q, k = grid(bias.depends, shape, _arange(bias, device))
    if isinstance(bias, TableBias):
        from maskattn_torch import tables

        return tables.look_up(bias.table, bias.rows(b, q, k))
    return bias.values(b, h, q, k)


def to_dense(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None, *, device: Any = None
) -> Array:
    """The mask as a bool tensor [batch, heads, q_len, kv_len]. True = may attend. Sizes not given come from the data.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    require_mask("to_dense", mask)
    sizes = mask.map_data(_readable).settle(q_len, kv_len, batch, heads)
    shape = tuple(sizes[axis] for axis in AXES)
    mask = bind(mask, device=device)
    return torch.broadcast_to(evaluate(mask, shape, _arange(mask, device)), shape)


def to_additive(
    mask: Mask,
    dtype: Any,
    q_len: int,
    kv_len: int,
    batch: int | None = None,
    heads: int | None = None,
    *,
    device: Any = None,
) -> Array:
    """0 where the mask allows, the dtype's minimum where it forbids: [batch, heads, q_len, kv_len].

    Raises:
        TypeError: the dtype is not a float. ValueError: the sizes conflict with the mask's data.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"to_additive: dtype must be a float dtype, got {dtype}")
    keep = to_dense(mask, q_len, kv_len, batch, heads, device=device)
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, torch.finfo(dtype).min)


def check(node: Any, batch: int, heads: int, q_len: int, kv_len: int) -> None:
    """Raise a ValueError naming every conflict between these sizes and the data of a mask or bias."""
    sizes = dict(zip(AXES, (batch, heads, q_len, kv_len), strict=True))
    faults = node.map_data(_readable).conflicts(sizes)
    if faults:
        raise ValueError("; ".join(faults))


def _readable(array: Array) -> Array:
    """The array in NumPy where reading it waits for no device; else as it is, and only its shape is checked."""
    if torch.compiler.is_compiling():
        return torch.as_tensor(array)  # the compiler cannot branch on values, of NumPy arrays neither
    if not isinstance(array, torch.Tensor) or array.device.type != "cpu":
        return array
    found = peek(array) if array.ndim == 1 else None
    return array if found is None else found


def _as_array(array: Array, device: Any) -> Array:
    if isinstance(array, torch.Tensor):
        return array if device is None else array.to(device)
    if not isinstance(array, np.ndarray):
        found = f"{type(array).__name__} of dtype {dtype_name(array)}"
        raise TypeError(f"data must be of NumPy or PyTorch here, got {found}")
    if not torch.compiler.is_compiling() and array.dtype == ml_dtypes.bfloat16:
        return torch.as_tensor(array.view(np.int16), device=device).view(torch.bfloat16)
    return torch.as_tensor(array, device=device)


def _arange(node: Any, device: Any) -> Callable[[int], Array]:
    if device is None:
        device = _device(node)
    return lambda size: torch.arange(size, device=device)


def _device(node: Any) -> Any:
    tensors: list[Array] = []
    node.map_data(tensors.append)
    return tensors[0].device if tensors else None


def _register(cls: type[Spec]) -> None:
    if cls in _REGISTERED:
        return
    _REGISTERED.add(cls)
    _pytree.register_pytree_node(cls, Spec.flatten, lambda leaves, structure: cls.unflatten(structure, leaves))
