"""Whole masks and biases as PyTorch tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch.overrides import TorchFunctionMode

from maskattn import lowering
from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn_torch import tables
from maskattn_torch.lower._binding import arange, bind, readable
from maskattn_torch.types import Array, Device, DType


def allowed(
    mask: Mask | None, batch: int, heads: int, q_len: int, kv_len: int, *, device: Device = None
) -> Bool[Array, "#B #H #L #S"] | None:
    """Where the mask allows: bool, rank 4, broadcastable to [batch, heads, q_len, kv_len]. True = may attend.

    Axes that the mask does not read have size 1. None where everything is allowed. `device`: as in `bind`.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    with _formulas():
        return lowering.allowed(mask, (batch, heads, q_len, kv_len), _lowering(device))


def bias(
    bias: Bias | None, batch: int, heads: int, q_len: int, kv_len: int, *, device: Device = None
) -> Float[Array, "#B #H #L #S"] | None:
    """The bias as a float tensor, rank 4, broadcastable to [batch, heads, q_len, kv_len].

    Axes that the bias does not read have size 1. A DenseBias is only reshaped: gradients flow to its array, and
    to the table of a TableBias, summed in one order for every framework. `device`: as in `bind`.

    Raises:
        ValueError: the sizes conflict with the bias's data.
    """
    with _formulas():
        return lowering.bias(bias, (batch, heads, q_len, kv_len), _lowering(device))


def to_dense(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None, *, device: Device = None
) -> Bool[Array, "B H L S"]:
    """The mask as a bool tensor [batch, heads, q_len, kv_len]. True = may attend. Sizes not given come from the data.

    `device`: as in `bind`.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    with _formulas():
        keep, sizes = lowering.dense(mask, q_len, kv_len, batch, heads, _lowering(device))
    return torch.broadcast_to(keep, sizes)


def to_additive(
    mask: Mask,
    dtype: DType,
    q_len: int,
    kv_len: int,
    batch: int | None = None,
    heads: int | None = None,
    *,
    device: Device = None,
) -> Float[Array, "B H L S"]:
    """0 where the mask allows, the dtype's minimum where it forbids: [batch, heads, q_len, kv_len].

    `device`: as in `bind`.

    Raises:
        TypeError: the dtype is not a float. ValueError: the sizes conflict with the mask's data.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"to_additive: dtype must be a float dtype, got {dtype}")
    keep = to_dense(mask, q_len, kv_len, batch, heads, device=device)
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, torch.finfo(dtype).min)


def _lowering(device: Device) -> lowering.Lowering:
    """What lowering needs of PyTorch, on `device` (default: NumPy data on the CPU, tensors where they are)."""
    bound, indices = partial(bind, device=device), partial(arange, device=device)
    return lowering.Lowering(readable, bound, indices, torch.Tensor.float, tables.look_up)


def _formulas() -> AbstractContextManager[object]:
    """A context in which formulas of masks can be recorded: torch.jit.trace has no `&` of a tensor and True."""
    return _Recorded() if not torch.compiler.is_compiling() and torch._C._is_tracing() else nullcontext()


class _Recorded(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        if func.__name__.removeprefix("bitwise_").strip("_") in ("and", "rand", "or", "ror", "xor", "rxor"):
            args = [torch.tensor(x) if isinstance(x, bool) else x for x in args]
        return func(*args, **(kwargs or {}))
