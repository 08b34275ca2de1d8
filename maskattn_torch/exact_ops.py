"""The array operations of ``maskattn.numerics.exact``, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor as Array

from maskattn.numerics.exact import FORMATS
from maskattn.typing import NumPyArray

__all__ = ["OPS"]

Carry = TypeVar("Carry")

_INTEGERS = {16: torch.int16, 32: torch.int32, 64: torch.int64}


class _TorchOps:
    """See ``maskattn.numerics.exact.Ops``."""

    limit: int | None = 1 << 15
    casts = True

    def bits(self, x: Array) -> Array:
        width = FORMATS[self.dtype(x)][2]
        return x.view(_INTEGERS[width]).to(torch.int64)

    def from_bits(self, x: Array, dtype: str) -> Array:
        return x.to(_INTEGERS[FORMATS[dtype][2]]).view(getattr(torch, dtype))

    def dtype(self, x: Array) -> str:
        return str(x.dtype).removeprefix("torch.")

    def to_int(self, x: Array) -> Array:
        return x.to(torch.int64)

    def to_float(self, x: Array) -> Array:
        return x.to(torch.float64)

    def to_float32(self, x: Array) -> Array:
        return x.to(torch.float32)

    def floor(self, x: Array) -> Array:
        return torch.floor(x)

    def absolute(self, x: Array) -> Array:
        return torch.abs(x)

    def isfinite(self, x: Array) -> Array:
        return torch.isfinite(x)

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        if isinstance(x, float) and isinstance(y, float):
            x = condition.new_full((), x, dtype=torch.float64)
        return torch.where(condition, x, y)

    def max(self, x: Array) -> Array:
        if x.shape[-1] == 0:
            return x.new_full((*x.shape[:-1], 1), -float("inf"))
        return x.amax(dim=-1, keepdim=True)

    def any(self, x: Array, axis: int) -> Array:
        return x.any(dim=axis, keepdim=True)

    def take(self, table: NumPyArray, index: Array) -> Array:
        return self.constants(table, index)[index]

    def constants(self, values: NumPyArray, like: Array) -> Array:
        return torch.as_tensor(values, device=like.device)

    def meet(self, a: Array, b: Array) -> Array:
        return a.to(torch.float32) @ b.to(torch.float32) > 0

    def matmul(self, a: Array, b: Array) -> Array:
        return a @ b

    def rows(self, table: Array, index: Array) -> Array:
        return table[index]

    def first(self, index: Array, count: int) -> Array:
        numbers = torch.arange(len(index), device=index.device)
        index = index.to(torch.int64)
        return numbers.new_zeros(count).scatter_reduce(0, index, numbers, "amin", include_self=False)[index]

    def put(self, x: Array, index: Array, rows: Array) -> Array:
        x[index] = rows
        return x

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        return torch.cat(tuple(arrays), axis)

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        return x.expand(tuple(shape))

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def moveaxis(self, x: Array, source: int, target: int) -> Array:
        return x.movedim(source, target)

    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        return torch.zeros(tuple(shape), dtype=torch.float64, device=like.device)

    def zeros_like(self, x: Array) -> Array:
        return torch.zeros_like(x, memory_format=torch.contiguous_format)

    def scan(self, step: Callable[[Carry, tuple[Array, ...]], Carry], carry: Carry, xs: Sequence[Array]) -> Carry:
        for row in zip(*xs, strict=True):
            carry = step(carry, row)
        return carry

    def loop(self, step: Callable[[Sequence[Array]], Sequence[Array]], carry: Sequence[Array]) -> Sequence[Array]:
        while bool(carry[0].any()):
            carry = step(carry)
        return carry


OPS = _TorchOps()
