"""What every custom operator of this twin needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function
from torch.utils.flop_counter import register_flop_formula

from maskattn_torch._modes import bare, unwatched

__all__ = ["applied", "first_derivatives", "flops", "operator"]


def operator(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that makes of a function the operator maskattn::name, which a compiler does not look into: its
    `register_fake` then says the shapes of its results, and `register_flops` what `FlopCounterMode` counts for it. The
    schema is that of the function's annotations, if not given.

    Under torch.func.vmap it runs once for each element, so the bits are those of a loop. Where no mode would see the
    operator the function is called itself, in a third of the time; `operator` is always the operator.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        said = torch.library.infer_schema(function, mutates_args=()) if schema is None else schema

        def own(*arguments: object) -> object:
            results = function(*arguments)
            return _own(results) if isinstance(results, Tensor) else type(results)([_own(x) for x in results])

        made = torch.library.custom_op(f"maskattn::{name}", own, mutates_args=(), schema=said)

        def rule(info: Any, in_dims: tuple[object, ...], *arguments: object) -> tuple[object, object]:
            results = [made(*_element(arguments, in_dims, i)) for i in range(info.batch_size)]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
            return type(results[0])(stacked), type(results[0])([0] * len(stacked))

        made.register_vmap(rule)

        @functools.wraps(function)
        def call(*arguments: object) -> object:
            return own(*arguments) if bare(arguments) else made(*arguments)

        counted = register_flop_formula(getattr(torch.ops.maskattn, name), get_raw=True)
        vars(call).update(operator=made, register_fake=made.register_fake, register_flops=counted)
        return call

    return decorate


def _own(x: Tensor) -> Tensor:
    """A result as no view of anything: PyTorch refuses to change the views that an autograd.Function gives in place."""
    return x.data if x._is_view() else x


def flops(pairs: int, query: Tensor, value: Tensor, backward: bool = False) -> int:
    """What PyTorch counts for SDPA over so many pairs of a query and a key: two flops for each multiply-add of its
    products. The backward pass has three as wide as queries, one of them the scores again, and two as wide as values.
    """
    query_width, value_width = query.shape[-1], value.shape[-1]
    return 2 * pairs * (3 * query_width + 2 * value_width if backward else query_width + value_width)


def applied(rules: type[Function], compiled: type[Function], *arguments: Any) -> Any:
    """`rules.apply(*arguments)`; its `forward` alone where nobody can ask for a gradient; `compiled.apply`, without a
    rule for the forward mode, where a compiler reads along: it takes none.
    """
    if unwatched(*[x for x in arguments if isinstance(x, Tensor)]):
        return rules.forward(*arguments)
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            return rules.apply(*arguments)
        # what `apply` comes to where every argument is given by its place; it looks at the signature in 20 us
        return super(Function, rules).apply(*unwrap_dead_wrappers(arguments))  # type: ignore[misc]
    seen: list[object] = []
    for x in arguments:  # the compiler takes each tensor once: where one stands again (self-attention), its view
        again = isinstance(x, Tensor) and any([x is other for other in seen])
        seen.append(x.view_as(x) if again else x)
    return compiled.apply(*seen)


def first_derivatives(kernel: str, rule: Callable[..., Sequence[Tensor]], *arrays: Tensor | None) -> list[Tensor]:
    """`rule(*arrays)`, gradients that an operator computes. Who differentiates them again is told where that can be
    done: without this the graph would end here, and what goes around attention would pass for the whole.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return list(rule(*arrays))
    return list(_FirstDerivatives.apply(kernel, rule, *arrays))


class _FirstDerivatives(Function):
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
