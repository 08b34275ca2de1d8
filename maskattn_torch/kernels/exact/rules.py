"""The rules of the exact arithmetic on PyTorch tensors: each as operators, and one way to derive them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, get_type_hints

from torch import Tensor as Array
from torch.autograd import Function

from maskattn.numerics.exact.layer import RULES, Layer
from maskattn.numerics.exact.rule import Arrays, Options, Rule
from maskattn_torch._operators import applied, first_derivatives, operator
from maskattn_torch.exact_ops import OPS

_ARRAYS = ("Tensor x", "Tensor? second", "Tensor? third")


def _operators(rule: Rule) -> tuple[Callable[..., Array], Callable[..., list[Array]]]:
    """The operators of a rule's function and of its gradients, those of None left out."""
    options = [f"{kind.__name__} {name}" for name, kind in get_type_hints(rule.options).items()]
    arrays, count, some = _ARRAYS[: rule.arrays], rule.arrays, slice(rule.differentiable)

    def forward(*given: Any) -> Array:
        made: Array = rule.forward(OPS, given[:count], rule.options(*given[count:]))
        return made.contiguous()

    def backward(*given: Any) -> list[Array]:
        made = rule.backward(OPS, given[:count], given[count], rule.options(*given[count + 1 :]))
        return [x.contiguous() for x in made if x is not None]

    def shape(*given: Any) -> tuple[int, ...]:
        return rule.shape(given[:count], rule.options(*given[count:]))

    name = f"exact_{rule.name}"
    function = operator(name, f"({', '.join((*arrays, *options))}) -> Tensor")(forward)
    with_d_out = f"({', '.join((*arrays, 'Tensor d_out', *options))}) -> Tensor[]"
    gradients = operator(f"{name}_gradients", with_d_out)(backward)
    function.register_fake(lambda *given: given[0].new_empty(shape(*given)))
    gradients.register_fake(lambda *given: [x.new_empty(x.shape) for x in given[:count][some] if x is not None])
    if (products := rule.products) is not None:

        def flops(*given: Any, **results: object) -> int:
            return 2 * products(given[:count], rule.options(*given[count:]))

        function.register_flops(flops)
        gradients.register_flops(lambda *given, **results: 2 * flops(*given[:count], *given[count + 1 :]))
    return function, gradients


_RULES = {rule.name: rule for rule in RULES}
#: By the names of rules: the operator of the function, and that of its gradients.
OPERATORS = {rule.name: _operators(rule) for rule in RULES}


class _Differentiable(Function):
    """Any rule's operators as one differentiable function: torch.func needs this form, torch.compile takes it, too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: str, x: Array, second: Array | None, third: Array | None, options: Options) -> Array:
        return OPERATORS[rule][0](*(x, second, third)[: _RULES[rule].arrays], *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rule, ctx.options = inputs[0], inputs[4]
        ctx.save_for_backward(*inputs[1:4])

    @staticmethod
    def backward(ctx: Any, d_out: Array) -> tuple[Any, ...]:
        rule, options = _RULES[ctx.rule], ctx.options
        arrays = ctx.saved_tensors[: rule.arrays]

        def gradients(*given: Any) -> list[Array]:
            return OPERATORS[rule.name][1](*given, *options)

        made = first_derivatives("exact", gradients, *arrays, d_out)
        given = [None if x is None else made.pop(0) for x in arrays[: rule.differentiable]]
        return None, *given, *[None] * (3 - len(given)), None


class _NoForwardMode(_Differentiable):
    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> NoReturn:
        raise NotImplementedError('kernel="exact" has no forward mode; kernel="reference" has')


def apply(rule: Rule, arrays: Arrays, options: Options) -> Array:
    """A rule's function of tensors, differentiable once, in reverse mode."""
    given = (*arrays, None, None)[:3]
    result: Array = applied(_NoForwardMode, _Differentiable, rule.name, *given, tuple(options))
    return result


class _Fork(Function):
    """An array twice; its gradient is that of both, added by `Layer.merge`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, one: Array | None, other: Array | None) -> Array | None:
        if one is None or other is None:
            return other if one is None else one
        return EXACT.merge(one, other)


def fork(x: Array) -> tuple[Array, Array]:
    """x twice, so that each of two readings has its own: their gradients are added exactly, and rounded once."""
    made: tuple[Array, Array] = applied(_Fork, _Fork, x)
    return made


#: All functions of `maskattn.numerics.exact.layer.Layer` on tensors.
EXACT: Layer[Array] = Layer(apply)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight + bias`` rounded once: x [..., in], weight [in, out], bias [out] or None -> [..., out] in x's
    dtype.
    """
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    flat = EXACT.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return flat.reshape(*x.shape[:-1], weight.shape[1])
