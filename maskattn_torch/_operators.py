"""What every custom operator of this twin needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_over", "operator"]


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that makes of a function the operator maskattn::name: a compiler does not look inside, and under
    torch.func.vmap it runs once for each element. `register_fake` it, for the shapes of its results.
    """

    def made(function: Callable[..., Any]) -> Any:
        found = torch.library.custom_op(f"maskattn::{name}", function, mutates_args=())
        map_over(found)
        return found

    return made


def map_over(operator: Any) -> None:
    """Under torch.func.vmap the operator runs once for each element, so the bits are those of a loop."""

    def element(x: Any, dim: Any, i: int) -> Any:
        if isinstance(x, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [element(one, d, i) for one, d in zip(x, dim, strict=True)]
        return x if dim is None else x.select(dim, i)

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        results = [
            operator(*(element(x, d, i) for x, d in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    torch.library.register_vmap(operator, rule)
