"""The arithmetic of whole models on tensors: modules applied, and what is computed between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from maskattn.models import leaves
from maskattn_torch import dropout, rng
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.layer import LAYER
from maskattn_torch.types import Array, DType

__all__ = ["OPS", "Plain"]


class Plain:
    """See `maskattn.models.part.Ops`.

    Args:
        dtype: of the computation; None: that of the parameters.
    """

    framework = FRAMEWORK
    arithmetic = LAYER

    def __init__(self, dtype: DType | None = None) -> None:
        self.dtype = dtype

    def linear(self, leaf: leaves.Linear, module: Any, x: Array) -> Array:
        """x [..., inputs] -> [..., outputs]."""
        return self._applied(module, x)

    def norm(self, leaf: leaves.Norm, module: Any, x: Array) -> Array:
        """x [..., width] normed; rounded to its dtype once."""
        return module(x)

    def embed(self, leaf: leaves.Embedding, module: Any, ids: Array) -> Array:
        """Rows of the table, [..., width]."""
        return self._cast(module(ids))

    def logits(self, leaf: leaves.Embedding, module: Any, x: Array, bias: Array | None) -> Array:
        """x [..., width] by all rows of the table: [..., rows]."""
        return F.linear(x, self._cast(module.weight), bias)

    def conv(self, leaf: leaves.Conv, module: Any, x: Array) -> Array:
        """x [B, *places, inputs] -> [B, *places, outputs]."""
        return self._applied(module, x.movedim(-1, 1)).movedim(1, -1)

    def array(self, held: Any) -> Array:
        """The numbers of a parameter that stands by itself."""
        return self._cast(held)

    def _cast(self, x: Array) -> Array:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def _applied(self, module: Any, x: Array) -> Array:
        if self.dtype is None or self.dtype == module.weight.dtype:
            return module(self._cast(x))
        cast = {name: self._cast(number) for name, number in module.named_parameters()}
        return torch.func.functional_call(module, cast, (self._cast(x),))

    def activate(self, x: Array, name: str) -> Array:
        """One of `ACTIVATIONS` of each number."""
        return _ACTIVATIONS[name](x)

    def product(self, x: Array, y: Array) -> Array:
        """x times y, which broadcast."""
        return x * y

    def scaled(self, x: Array, factor: float) -> Array:
        """x times a number."""
        return x * factor

    def add(self, x: Array, y: Array, factor: float = 1.0) -> Array:
        """x plus factor times y, which broadcast."""
        return x + y if factor == 1.0 else x + y * factor

    def drop(self, x: Array, rate: float, key: Array) -> Array:
        """Dropout of each number by itself."""
        return dropout.drop(x, rate, key)

    def fold(self, key: Array, number: int) -> Array:
        """The key of a place, from the key of what it is within."""
        return rng.fold_in(key, number)

    def arange(self, length: int, like: Array) -> Array:
        """0, 1, ..., int32 [length], where `like` is."""
        return torch.arange(length, device=like.device)

    def as_array(self, x: Any, like: Array | None) -> Array:
        """A tensor, where `like` is."""
        return torch.as_tensor(x, device=None if like is None else like.device)

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """The arrays one after the other along an axis."""
        return torch.cat(list(arrays), axis)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""
        return torch.where(condition, x, y)

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        """x of a larger shape."""
        return x.expand(tuple(shape))


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}

OPS = Plain()
