"""The blockwise kernel: rectangles of the score matrix, linear memory, what the mask empties is never visited.

The tiles of a mask (`schedule.tiles`) become few large rectangles (`schedule.pieces`), each done by SDPA's own CPU
kernel, or by matrix products where it has a bias, softcap, dropout, or Dv other than D. float64 is computed in
float64, everything else in float32 and rounded once. On CUDA the mask becomes a BlockMask of FlexAttention.

    calls.py    which calls a mask needs            flash.py       one call by SDPA's operator
    walk.py     the calls in order, both ways       products.py    one call by matrix products
    bias.py     biases and their gradients          spec.py        masks as arguments of an operator
    flex.py     on CUDA

It is an opaque operator: it works in eager mode, inside compiled models and under torch.func.vmap. Second derivatives
are not defined: `reference` has them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from maskattn import blocks
from maskattn.attention import Call
from maskattn_torch.dropout import Dropout
from maskattn_torch.kernels.blockwise import bias as blockwise_bias, flex as blockwise_flex, walk as blockwise_walk
from maskattn_torch.kernels.blockwise.spec import pack, unpack

Array = Any


def attention(call: Call) -> tuple[Array, Array]:
    """Attend by tiles. (Bridge: this file's own form comes next.)"""
    with blocks.forcing(*call.blocks) if call.blocks else contextlib.nullcontext():
        arrays = (call.query, call.key, call.value, call.mask, call.bias, call.sinks)
        options = {name: getattr(call, name) for name in ("scale", "softcap", "dropout", "empty_rows", "precision")}
        return _attend(*arrays, **options)


def unsupported(call: Call) -> list[str]:
    """Why this kernel cannot run a call. (Bridge.)"""
    arrays = (call.query, call.key, call.value, call.mask, call.bias, call.sinks)
    return _unsupported(*arrays, empty_rows=call.empty_rows, dropout=call.dropout)


def _attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    bias: Any,
    sinks: Array | None,
    *,
    scale: float,
    softcap: float | None,
    dropout: Dropout | None,
    empty_rows: str,
    precision: str,
) -> tuple[Array, Array]:
    """Attend block by block: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    `mask` (True = may attend), `bias` and `dropout` are objects bound to PyTorch, or None. `precision` changes nothing
    on the CPU.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    sinks = None if sinks is None else sinks.to(wide)
    if query.is_cuda:
        arrays = (query, key, value)
        out, lse = blockwise_flex.attention(*arrays, mask, bias, sinks, scale=scale, softcap=softcap)
    else:
        number, leaves = pack(mask, bias, dropout)
        arrays = (query.to(wide), key.to(wide), value.to(wide))
        out, lse = _Attention.apply(*arrays, sinks, number, scale, softcap, *leaves)
    if empty_rows == "nan" and sinks is None:
        out = torch.where((lse == -torch.inf).unsqueeze(-1), torch.nan, out)
    return out.to(query.dtype), lse


def _unsupported(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, sinks: Array | None, **options: Any
) -> list[str]:
    """Every reason why this kernel cannot run a call; [] where it can."""
    reasons = []
    if options["empty_rows"] == "mean" and sinks is None:
        reasons.append('empty_rows="mean" averages all values: reference and exact have it')
    if query.is_cuda:
        return reasons + blockwise_flex.unsupported(query, key, value, options["dropout"])
    for name in blockwise_bias.undifferentiated(bias):
        reasons.append(f"{type(bias).__name__}.{name} requires a gradient, known here for DenseBias, tables and ALiBi")
    return reasons


@torch.library.custom_op("maskattn::blockwise_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    number: int,
    leaves: list[Tensor],
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    mask, bias, dropout = unpack(number, leaves)
    problem = blockwise_walk.Problem(mask, bias, dropout, scale, softcap)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = _heads_first(query, key, value)
        out, lse = blockwise_walk.forward(problem, q, k, v)
        if sinks is not None:
            total = torch.logaddexp(lse, sinks[:, None])
            out, lse = out * (lse - total).exp_().unsqueeze(-1), total
    return out.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous()


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty((*query.shape[:3], value.shape[3])), query.new_empty(query.shape[:3])


@torch.library.custom_op("maskattn::blockwise_attention_gradients", mutates_args=())
def _attention_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    number: int,
    leaves: list[Tensor],
    scale: float,
    softcap: float | None,
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients of query, key, value, of sinks if given, and of the leaves that are wanted."""
    mask, bias, dropout = unpack(number, leaves)
    problem = blockwise_walk.Problem(mask, bias, dropout, scale, softcap)
    count = len(blockwise_bias.leaves_of(bias))
    start = len(leaves) - count - (dropout is not None)
    with torch.autocast(query.device.type, enabled=False):
        d_lse = d_lse if d_lse is not None and bool(d_lse.any()) else None
        q, k, v = _heads_first(query, key, value)
        rows = (d_out.transpose(1, 2), out.transpose(1, 2), lse.transpose(1, 2))
        of_lse = None if d_lse is None else d_lse.transpose(1, 2)
        *gradients, of_bias = blockwise_walk.backward(problem, wanted[start : start + count], q, k, v, *rows, of_lse)
        found = [x.transpose(1, 2).contiguous() for x in gradients]
        if sinks is not None:
            delta = (d_out * out).sum(-1) - (0 if d_lse is None else d_lse)
            found.append(-((sinks - lse).exp_() * delta).sum((0, 1)))
    return found + of_bias


@_attention_gradients.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, *rest: Any) -> list[Tensor]:
    leaves, wanted = rest[5], rest[8]
    given = [query, key, value, *([] if sinks is None else [sinks])]
    return [x.new_empty(x.shape) for x in given + [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]]


class _Attention(torch.autograd.Function):
    """The operators as one differentiable function: torch.func needs this form, torch.compile takes it as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        number: int,
        scale: float,
        softcap: float | None,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _attention(query, key, value, sinks, number, list(leaves), scale, softcap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4], *output, *inputs[7:])
        ctx.options = inputs[4:7]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, sinks, out, lse, *leaves = ctx.saved_tensors
        number, scale, softcap = ctx.options
        wanted = [bool(x) for x in ctx.needs_input_grad[7:]]
        d_out = torch.zeros_like(out) if d_out is None else d_out
        arguments = (query, key, value, sinks, out, lse, d_out, d_lse, number, leaves, scale, softcap, wanted)
        grads = list(_attention_gradients(*arguments))
        d_leaves = [grads.pop(-sum(wanted[i:])) if want else None for i, want in enumerate(wanted)]
        d_sinks = None if sinks is None else grads.pop()
        return *grads, d_sinks, None, None, None, *d_leaves


def _heads_first(*arrays: Tensor) -> tuple[Tensor, ...]:
    """[B, length, heads, D] -> [B, heads, length, D], views whose rows are contiguous."""
    return tuple((x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2) for x in arrays)


def _map_over(operator: Any) -> None:
    """Under torch.func.vmap the operator runs once for each element: the masks may differ."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def part(x: Any, dim: Any, i: int) -> Any:
            if isinstance(x, (list, tuple)) and isinstance(dim, (list, tuple)):
                return [part(one, d, i) for one, d in zip(x, dim, strict=True)]
            return x if dim is None else x.select(dim, i)

        results = [
            operator(*(part(x, d, i) for x, d in zip(arguments, in_dims, strict=True))) for i in range(info.batch_size)
        ]
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    torch.library.register_vmap(operator, rule)


for _operator in (_attention, _attention_gradients):
    _map_over(_operator)
