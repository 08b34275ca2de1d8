"""Whole models in the exact arithmetic, on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Module

from maskattn.models import exact, leaves
from maskattn_torch import dropout
from maskattn_torch._additions import has_additions
from maskattn_torch.kernels import exact as kernel
from maskattn_torch.kernels.exact.rules import fork
from maskattn_torch.models.ops import OPS
from maskattn_torch.types import Array

__all__ = ["Exact", "added_to"]


class Exact(exact.Exact[Array]):
    """See `maskattn.models.exact.Exact`."""

    def __init__(self) -> None:
        super().__init__(OPS, kernel.LAYER)

    def numbers(self, leaf: leaves.Leaf, module: Any) -> tuple[Array | None, Array | None]:
        """Weight and bias of a layer as it holds them."""
        weight, bias = (None if x is None else self.once(x) for x in (module.weight, getattr(module, "bias", None)))
        if weight is not None and isinstance(leaf, leaves.Linear):
            weight = weight.T
        if weight is not None and isinstance(leaf, leaves.Conv):
            weight = weight.movedim((1, 0), (-2, -1))
        return weight, bias

    def fork(self, x: Array) -> tuple[Array, Array]:
        """x twice; its gradient is that of both added, rounded once."""
        return fork(x)

    def scope(self) -> object:
        """One for all: PyTorch's arrays know what they came of."""
        return None

    def is_followed(self, x: Array) -> bool:
        """Whether gradients of x may be asked for. A compiler cannot tell tensors apart, and adds gradients itself."""
        return x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def drop(self, x: Array, rate: float, key: Array) -> Array:
        """Dropout of each number by itself."""
        return dropout.drop(self.once(x), rate, key, kernel.drop)


def added_to(
    model: Module, plain: tuple[type[Module], ...], groups: tuple[type[Module], ...]
) -> Iterator[tuple[str, str]]:
    """(path, what it is) of layers of a model that are more than their numbers.

    Args:
        plain: what layers are. groups: what holds them, which is called.
    """
    for path, module in model.named_modules():
        if not isinstance(module, groups) and (what := has_additions(module, plain)):
            yield path, what
