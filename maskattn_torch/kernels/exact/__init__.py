"""The exact kernel: the arithmetic of ``maskattn.numerics.exact`` on PyTorch tensors, and its gradients.

The same bits as NumPy and JAX, forward and backward, in eager mode, under torch.func.vmap, and inside a compiled
model, where it is an opaque operator (a compiler that looked inside would be free to fuse what must stay apart).
It has first derivatives in reverse mode; ``reference`` has all others.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor as Array

from maskattn.attention import Call
from maskattn.numerics.exact import Arrays, Options, attend
from maskattn.numerics.exact.drop import drop as _exact_drop
from maskattn_torch import lower
from maskattn_torch._derivatives import primals
from maskattn_torch._operators import applied, first_derivatives, flops, operator
from maskattn_torch.dropout import dense
from maskattn_torch.exact_ops import OPS
from maskattn_torch.kernels.exact.layer import LAYER as LAYER
from maskattn_torch.kernels.exact.rules import linear as linear


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend exactly: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    `precision` is met by every result.
    """
    device = call.query.device
    allowed = lower.allowed(call.mask, *call.sizes, device=device)
    added = lower.bias(call.bias, *call.sizes, device=device)
    dropout = call.dropout
    keep, kept = (None, 1.0) if dropout is None else (dense(dropout, call.sizes), 1.0 - dropout.rate)
    arrays = Arrays(call.query, call.key, call.value, allowed, added, call.sinks, keep)
    arguments = (*arrays, *Options(call.scale, call.softcap, call.empty_rows, kept))
    output: tuple[Array, Array] = applied(_ExactForward, _Exact, *arguments)
    return output


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: it runs every call."""
    return []


def drop(x: Array, keep: Array, rate: float) -> Array:
    """``x * keep / (1 - rate)`` rounded once; ``keep`` (bool) has the shape of ``x``."""
    dropped: Array = applied(_DropForward, _Drop, x, keep, 1.0 - rate)
    return dropped


_ARRAYS = "Tensor query, Tensor key, Tensor value, Tensor? allowed, Tensor? bias, Tensor? sinks, Tensor? keep"
_OPTIONS = "float scale, float? softcap, str empty_rows, float kept"


@operator("exact_attention", f"({_ARRAYS}, {_OPTIONS}) -> (Tensor, Tensor)")
def _attention(*arguments: Any) -> tuple[Array, Array]:
    output, lse = attend.forward(OPS, Arrays(*arguments[:7]), Options(*arguments[7:]))
    return output.contiguous(), lse.contiguous()


@_attention.register_fake
def _(query: Array, key: Array, value: Array, *rest: object) -> tuple[Array, Array]:
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    output = query.new_empty((*query.shape[:3], value.shape[3]))
    return output, query.new_empty(query.shape[:3], dtype=wide)


@_attention.register_flops
def _(query: Array, key: Array, value: Array, *rest: object, **results: object) -> int:
    return flops(query.shape[:3].numel() * key.shape[1], query, value)


@operator("exact_attention_gradients", f"({_ARRAYS}, Tensor d_output, Tensor d_lse, {_OPTIONS}) -> Tensor[]")
def _attention_gradients(*arguments: Any) -> list[Array]:
    d_output, d_lse = arguments[7:9]
    grads = attend.backward(OPS, Arrays(*arguments[:7]), d_output, d_lse, Options(*arguments[9:]))
    return [g.contiguous() for g in grads if g is not None]


@_attention_gradients.register_fake
def _(query: Array, key: Array, value: Array, allowed: Any, bias: Any, sinks: Any, *rest: Any) -> list[Array]:
    return [x.new_empty(x.shape) for x in (query, key, value, bias, sinks) if x is not None]


@_attention_gradients.register_flops
def _(query: Array, key: Array, value: Array, *rest: object, **results: object) -> int:
    return flops(query.shape[:3].numel() * key.shape[1], query, value, backward=True)


class _Exact(torch.autograd.Function):
    """The operators as one differentiable function: torch.func needs this form, torch.compile takes it as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # each by its name: PyTorch's compiler counts them
        query: Array,
        key: Array,
        value: Array,
        allowed: Array | None,
        bias: Array | None,
        sinks: Array | None,
        keep: Array | None,
        scale: float,
        softcap: float | None,
        empty_rows: str,
        kept: float,
    ) -> tuple[Array, Array]:
        return _attention(query, key, value, allowed, bias, sinks, keep, scale, softcap, empty_rows, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.options = inputs[7:]

    @staticmethod
    def backward(ctx: Any, d_output: Array, d_lse: Array) -> tuple[Any, ...]:
        inputs, options = ctx.saved_tensors, ctx.options

        def rule(*given: Any) -> list[Array]:
            return _attention_gradients(*given, *options)

        grads = first_derivatives("exact", rule, *inputs, d_output, d_lse)
        d_sinks = None if inputs[5] is None else grads.pop()
        d_bias = None if inputs[4] is None else grads.pop()
        return *grads, None, d_bias, d_sinks, *[None] * 5


class _ExactForward(_Exact):
    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> NoReturn:
        raise NotImplementedError('kernel="exact" has no forward mode; kernel="reference" has')


@operator("exact_drop")
def _drop(x: Array, keep: Array, kept: float) -> Array:
    return _exact_drop(OPS, x.contiguous(), keep, kept).contiguous()


@_drop.register_fake
def _(x: Array, keep: Array, kept: float) -> Array:
    return x.new_empty(x.shape)


class _Drop(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Array, keep: Array, kept: float) -> Array:
        return _drop(x, keep, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, keep, ctx.kept = inputs
        ctx.save_for_backward(keep)

    @staticmethod
    def backward(ctx: Any, d_out: Array) -> tuple[Any, ...]:
        kept = ctx.kept

        def rule(*given: Any) -> list[Array]:
            return [_drop(*given, kept)]

        return *first_derivatives("exact", rule, d_out, *ctx.saved_tensors), None, None


class _DropForward(_Drop):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _Drop.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, d_x: Array, *_: None) -> Array:
        with primals(ctx) as (keep,):
            return _DropForward.apply(d_x, keep, ctx.kept)
