"""Derivatives of every order and in both modes, of functions that keep nothing for them but what they are given.

Each derivative of `computed` is a `computed` again, which goes through the formula anew when it is asked for. So the
memory for all of them is that of arguments and results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

__all__ = ["beyond_first", "computed", "floats", "gradients_of", "primals", "tangents_of"]

#: A function of tensors, and of None where one is not given.
Rule: TypeAlias = Callable[..., Sequence[Tensor]]

#: The results of a function, and the function that takes their cotangents to those of its arguments.
_vjp: Callable[..., tuple[Any, Callable[..., Any]]] = torch.func.vjp  # type: ignore[assignment]


def computed(values: Rule, formula: Rule, *arrays: Tensor | None) -> tuple[Tensor, ...]:
    """`values(*arrays)`, whose derivatives are those of `formula(*arrays)`.

    Both use no other tensors: what `torch.func` transforms must be among the arguments.
    """
    return _Computed.apply(values, formula, *arrays)


def gradients_of(formula: Rule, count: int) -> Rule:
    """The function of `count` arguments of a formula, then of the cotangents of its results: the gradients of those
    arguments that are float tensors.
    """

    def gradients(*given: Tensor | None) -> Sequence[Tensor]:
        arrays, cotangents = given[:count], given[count:]
        chosen, inputs = _floats(formula, arrays)
        results, pull = _vjp(chosen, *inputs)
        return pull(tuple(_like(x, c) for x, c in zip(results, cotangents, strict=True)))

    return gradients


def tangents_of(formula: Rule, count: int) -> Rule:
    """The function of `count` arguments of a formula, then of a tangent for each of them that is a float tensor: the
    tangents of its results.
    """

    def tangents(*given: Tensor | None) -> Sequence[Tensor]:
        arrays, moved = given[:count], given[count:]
        chosen, inputs = _floats(formula, arrays)
        results, pull = _vjp(chosen, *inputs)
        # the gradients are linear in the cotangents, and the transpose of that is the forward mode: a forward mode
        # within another is what PyTorch does not have
        _, push = _vjp(pull, tuple(torch.zeros_like(x) for x in results))
        return push(tuple(_like(x, t) for x, t in zip(inputs, moved, strict=True)))[0]

    return tangents


@contextmanager
def primals(ctx: Any) -> Iterator[tuple[Any, ...]]:
    """What was saved, in a rule for the forward mode, for an outer forward mode to see through.

    PyTorch switches forward modes off in such a rule, the outer ones too, whose share would silently be 0.
    """
    levels = torch._C._functorch.get_interpreter_stack() or []
    with forward_ad._set_fwd_grad_enabled(True):
        yield tuple(None if x is None else _primal(x, levels) for x in ctx.saved_tensors)


def _primal(x: Tensor, levels: Sequence[Any]) -> Tensor:
    """`x` without its tangent of the innermost forward mode, which may lie beneath levels of torch.func.vmap."""
    functorch = torch._C._functorch
    if not levels:
        return forward_ad.unpack_dual(x).primal
    level = levels[-1].level()
    if levels[-1].key() != functorch.TransformType.Vmap:
        return functorch._unwrap_for_grad(x, level)
    inner, axis = functorch._unwrap_batched(x, level)
    inner = _primal(inner, levels[:-1])
    return inner if axis is None else functorch._add_batch_dim(inner, axis, level)


def floats(arrays: Sequence[Tensor | None]) -> list[int]:
    """Which of the arguments are differentiable: float tensors."""
    return [n for n, x in enumerate(arrays) if x is not None and x.is_floating_point()]


def beyond_first() -> bool:
    """Whether something differentiates in forward mode now, or twice by `torch.func`."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is None:
        return forward_ad._current_level >= 0
    keys = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    kinds = torch._C._functorch.TransformType
    return forward_ad._current_level >= 0 or kinds.Jvp in keys or keys.count(kinds.Grad) > 1


class _Computed(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Rule, formula: Rule, *arrays: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(values(*arrays))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.formula, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.save_for_forward(*arrays)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        arrays = ctx.saved_tensors
        rule = gradients_of(ctx.formula, len(arrays))
        found = iter(computed(rule, rule, *arrays, *cotangents))
        differentiable = floats(arrays)
        return None, None, *(next(found) if n in differentiable else None for n in range(len(arrays)))

    @staticmethod
    def jvp(ctx: Any, _values: Any, _formula: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        with primals(ctx) as arrays:
            moved = [torch.zeros_like(arrays[n]) if tangents[n] is None else tangents[n] for n in floats(arrays)]
            rule = tangents_of(ctx.formula, len(arrays))
            return computed(rule, rule, *arrays, *moved)


def _floats(formula: Rule, arrays: Sequence[Tensor | None]) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The formula as a function of its float tensors alone, and those."""
    where = floats(arrays)

    def chosen(*inputs: Tensor) -> tuple[Tensor, ...]:
        every = list(arrays)
        for n, x in zip(where, inputs, strict=True):
            every[n] = x
        return tuple(formula(*every))

    return chosen, [x for x in (arrays[n] for n in where) if x is not None]


def _like(x: Tensor, given: Tensor | None) -> Tensor:
    return torch.zeros_like(x) if given is None else given.to(x.dtype)
