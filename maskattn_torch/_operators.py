"""What every custom operator of this twin needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

__all__ = ["first_derivatives", "operator", "unwatched"]


def operator(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that makes of a function the operator maskattn::name, which a compiler does not look into: its
    `register_fake` then says the shapes of its results. The schema is that of the function's annotations, if not given.

    Under torch.func.vmap it runs once for each element, so the bits are those of a loop.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"maskattn::{name}", function, mutates_args=(), schema=schema)

        def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
            results = [made(*_element(arguments, in_dims, i)) for i in range(info.batch_size)]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
            return type(results[0])(stacked), type(results[0])([0] * len(stacked))

        made.register_vmap(rule)
        return made

    return decorate


def unwatched(*arrays: Tensor | None) -> bool:
    """Whether a compiler reads along and nobody can ask for a gradient. An operator is then called by itself: of an
    autograd.Function whose `forward` takes `*arguments`, the compiler would believe that it takes a context, too.
    """
    if not torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arrays))


def first_derivatives(kernel: str, rule: Callable[..., Sequence[Tensor]], *arrays: Tensor | None) -> list[Tensor]:
    """`rule(*arrays)`, gradients that an operator computes. Who differentiates them again is told where that can be
    done: without this the graph would end here, and what goes around attention would pass for the whole.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return list(rule(*arrays))
    return list(_FirstDerivatives.apply(kernel, rule, *arrays))


class _FirstDerivatives(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(kernel: str, rule: Callable[..., Sequence[Tensor]], *arrays: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(rule(*arrays))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> NoReturn:
        raise NotImplementedError(f'kernel="{ctx.kernel}" has no second derivatives; kernel="reference" has')

    jvp = backward


def _element(x: Any, dim: Any, i: int) -> Any:
    """Entry `i` of the axes `dim` of tensors, or of lists of them; None is no axis."""
    if isinstance(x, (list, tuple)) and isinstance(dim, (list, tuple)):
        return [_element(one, d, i) for one, d in zip(x, dim, strict=True)]
    return x if dim is None else x.select(dim, i)
