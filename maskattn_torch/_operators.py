"""What every custom operator of this twin needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["map_over"]


def map_over(operator: Any) -> None:
    """Under torch.func.vmap the operator runs once for each element, so the bits are those of a loop."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def element(i: int) -> list[Any]:
            return [x if d is None else x.select(d, i) for x, d in zip(arguments, in_dims, strict=True)]

        results = [operator(*element(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    torch.library.register_vmap(operator, rule)
