"""The exact functions of a layer on PyTorch tensors: each rule of the core as operators, and one way to derive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, get_type_hints

from torch import Tensor as Array
from torch.autograd import Function

from maskattn.numerics.exact.layer import RULES, Layer
from maskattn.numerics.exact.rule import Arrays, Options, Rule
from maskattn_torch._operators import applied, first_derivatives, operator
from maskattn_torch.exact_ops import OPS

__all__ = ["LAYER"]

_ARRAYS = ("Tensor x", "Tensor? second", "Tensor? third")


def _operators(rule: Rule) -> tuple[Callable[..., Array], Callable[..., list[Array]]]:
    """The operators of a rule's function and of its gradients, those of None left out."""
    options = [f"{kind.__name__} {name}" for name, kind in get_type_hints(rule.options).items()]
    arrays = _ARRAYS[: rule.arrays]
    some = slice(rule.differentiable)

    def forward(*given: Any) -> Array:
        made: Array = rule.forward(OPS, given[: rule.arrays], rule.options(*given[rule.arrays :]))
        return made.contiguous()

    def backward(*given: Any) -> list[Array]:
        rest = rule.options(*given[rule.arrays + 1 :])
        made = rule.backward(OPS, given[: rule.arrays], given[rule.arrays], rest)
        return [x.contiguous() for x in made if x is not None]

    function = operator(f"exact_{rule.name}", f"({', '.join((*arrays, *options))}) -> Tensor")(forward)
    given = ", ".join((*arrays, "Tensor d_out", *options))
    gradients = operator(f"exact_{rule.name}_gradients", f"({given}) -> Tensor[]")(backward)
    function.register_fake(lambda *x: x[0].new_empty(rule.shape(x[: rule.arrays])))
    gradients.register_fake(lambda *x: [a.new_empty(a.shape) for a in x[: rule.arrays][some] if a is not None])
    return function, gradients


_OPERATORS = {rule.name: _operators(rule) for rule in RULES}


class _Differentiable(Function):
    """Any rule's operators as one differentiable function: torch.func needs this form, torch.compile takes it, too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: str, x: Array, second: Array | None, third: Array | None, options: Options) -> Array:
        count = _RULES[rule].arrays
        return _OPERATORS[rule][0](*(x, second, third)[:count], *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rule, ctx.options = inputs[0], inputs[4]
        ctx.save_for_backward(*inputs[1:4])

    @staticmethod
    def backward(ctx: Any, d_out: Array) -> tuple[Any, ...]:
        rule, options = _RULES[ctx.rule], ctx.options
        arrays = ctx.saved_tensors[: rule.arrays]

        def gradients(*given: Any) -> list[Array]:
            return _OPERATORS[rule.name][1](*given, *options)

        made = first_derivatives("exact", gradients, *arrays, d_out)
        given = [None if x is None else made.pop(0) for x in arrays[: rule.differentiable]]
        return None, *given, *[None] * (3 - len(given)), None


class _NoForwardMode(_Differentiable):
    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> NoReturn:
        raise NotImplementedError('kernel="exact" has no forward mode; kernel="reference" has')


_RULES = {rule.name: rule for rule in RULES}


def _apply(rule: Rule, arrays: Arrays, options: Options) -> Array:
    given = (*arrays, None, None)[:3]
    result: Array = applied(_NoForwardMode, _Differentiable, rule.name, *given, tuple(options))
    return result


#: The functions of `maskattn.numerics.exact.Layer` on tensors: differentiable once, in reverse mode.
LAYER: Layer[Array] = Layer(_apply)
