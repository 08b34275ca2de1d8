"""The blockwise kernel: rectangles of the score matrix, linear memory, what the mask empties is never visited.

The tiles of a mask (`schedule.tiles`) become few large rectangles (`schedule.pieces`), each done by SDPA's own CPU
kernel, or by matrix products where it has a bias, softcap, dropout, or Dv other than D. float64 is computed in
float64, everything else in float32 and rounded once. On CUDA the mask becomes a BlockMask of FlexAttention.

    patches.py    which patches a mask needs           flash.py        one patch by SDPA's operator
    walk.py       the patches in order, both ways      products.py     one patch by matrix products
    windows.py    where a patch is in the arrays       additions.py    biases and their gradients
    flex.py       on CUDA                              packing.py      masks as arguments of an operator

It is an opaque operator: it works in eager mode, inside compiled models and under torch.func.vmap. The first derivative
in reverse mode goes over the same rectangles; all others are those of the formula (`reference`), by some queries each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor as Array

from maskattn.attention import Call, PartOfCall
from maskattn_torch import _autocast
from maskattn_torch._derivatives import computed, floats, gradients_of, primals, tangents_of
from maskattn_torch._operators import applied, flops, operator
from maskattn_torch.kernels import reference
from maskattn_torch.kernels.blockwise import additions, flex, walk
from maskattn_torch.kernels.blockwise.packing import pack, unpack


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend block by block: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    `precision` changes nothing on the CPU.
    """
    dtype, sinks = call.query.dtype, call.sinks
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sinks = None if sinks is None else sinks.to(wide)
    if call.query.is_cuda:
        out, given = flex.attention(call, sinks)
        assert given is not None  # as it is on the CPU alone
        lse = given
    else:
        packed, leaves = pack(call.mask, call.bias, call.dropout)
        arrays = (call.query.to(wide), call.key.to(wide), call.value.to(wide), sinks)
        options = (packed, call.scale, call.softcap, call.blocks)
        out, lse = applied(_BlockwiseForward, _Blockwise, *arrays, *options, *leaves)
    if call.empty_rows == "nan" and sinks is None:
        out = torch.where((lse == -torch.inf).unsqueeze(-1), torch.nan, out)
    return out.to(dtype), lse


def unsupported(call: Call[Array]) -> list[str]:
    """Every reason why this kernel cannot run a call; [] where it can."""
    reasons = []
    if call.empty_rows == "mean" and call.sinks is None:
        reasons.append('empty_rows="mean" averages all values: reference and exact have it')
    if call.query.is_cuda:
        return reasons + flex.unsupported(call)
    for name in additions.undifferentiated(call.bias):
        kind = type(call.bias).__name__
        reasons.append(f"{kind}.{name} requires a gradient, known here for DenseBias, tables and ALiBi")
    return reasons


@operator("blockwise_attention")
def _attention(
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None,
    packed: str,
    scale: float,
    softcap: float | None,
    blocks: Sequence[int] | None,
    leaves: list[Array],
) -> tuple[Array, Array]:
    conditions = _conditions(packed, leaves, scale, softcap, blocks)
    with _autocast.off(query.device):
        out, lse = walk.forward(conditions, *_heads_first(query, key, value))
        if sinks is not None:
            total = torch.logaddexp(lse, sinks)
            out, lse = out * (lse - total).exp_().unsqueeze(-1), total
    return out.contiguous(), lse.contiguous()


@_attention.register_fake
def _(query: Array, key: Array, value: Array, *rest: object) -> tuple[Array, Array]:
    return query.new_empty((*query.shape[:3], value.shape[3])), query.new_empty(query.shape[:3])


@_attention.register_flops
def _(query: Array, key: Array, value: Array, sinks: object, *options: Any, out_val: object) -> int:
    packed, scale, softcap, blocks, leaves = options
    q, k, v = _heads_first(query, key, value)
    return flops(walk.pairs(_conditions(packed, leaves, scale, softcap, blocks), q, k, v), query, value)


@operator("blockwise_attention_gradients")
def _attention_gradients(
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None,
    out: Array,
    lse: Array,
    d_out: Array,
    d_lse: Array | None,
    packed: str,
    scale: float,
    softcap: float | None,
    blocks: Sequence[int] | None,
    leaves: list[Array],
    wanted: list[bool],
) -> list[Array]:
    """The gradients of query, key, value, of sinks if given, and of the leaves that are wanted."""
    conditions = _conditions(packed, leaves, scale, softcap, blocks)
    count = len(additions.leaves_of(conditions.bias))
    start = len(leaves) - count - (conditions.dropout is not None)
    with _autocast.off(query.device):
        d_lse = d_lse if d_lse is not None and bool(d_lse.any()) else None
        rows = (d_out.transpose(1, 2), out.transpose(1, 2), lse.transpose(1, 2))
        of_lse = None if d_lse is None else d_lse.transpose(1, 2)
        q, k, v = _heads_first(query, key, value)
        *gradients, of_bias = walk.backward(conditions, wanted[start : start + count], q, k, v, *rows, of_lse)
        ordered = [x.transpose(1, 2).contiguous() for x in gradients]
        if sinks is not None:
            delta = (d_out * out).sum(-1) - (0 if d_lse is None else d_lse)
            ordered.append(-((sinks - lse).exp_() * delta).sum((0, 1)))
    return ordered + of_bias


@_attention_gradients.register_fake
def _(query: Array, key: Array, value: Array, sinks: Array | None, *rest: Any) -> list[Array]:
    *_, leaves, wanted = rest
    given = [query, key, value, *([] if sinks is None else [sinks])]
    return [x.new_empty(x.shape) for x in given + [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]]


@_attention_gradients.register_flops
def _(query: Array, key: Array, value: Array, *rest: Any, out_val: object) -> int:
    d_lse, packed, scale, softcap, blocks, leaves, _ = rest[4:]
    q, k, v = _heads_first(query, key, value)
    pairs = walk.pairs(_conditions(packed, leaves, scale, softcap, blocks), q, k, v, plain=d_lse is not None)
    return flops(pairs, query, value, backward=True)


class _Blockwise(torch.autograd.Function):
    """The operators as one differentiable function: torch.func needs this form, torch.compile takes it as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: object) -> tuple[Array, Array]:
        return _attention(*arguments[:8], list(arguments[8:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4], *output, *inputs[8:])
        ctx.options = inputs[4:8]

    @staticmethod
    def backward(ctx: Any, d_out: Array | None, d_lse: Array | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint gives them once
        (*arrays, sinks, out, lse), leaves = saved[:6], saved[6:]
        wanted = [bool(x) for x in ctx.needs_input_grad[8:]]
        d_out = torch.zeros_like(out) if d_out is None else d_out
        options = ctx.options

        def rule(*given: Any) -> list[Array]:
            return _attention_gradients(*given[:8], *options, list(given[8:]), wanted)

        given = (*arrays, sinks, out.detach(), lse.detach(), d_out, d_lse, *leaves)
        again = not torch.compiler.is_compiling() and torch.is_grad_enabled()
        grads = list(computed(rule, _formula_of_gradients(options, wanted), *given) if again else rule(*given))
        d_leaves = [grads.pop(-sum(wanted[i:])) if want else None for i, want in enumerate(wanted)]
        d_sinks = None if sinks is None else grads.pop()
        return *grads, d_sinks, *[None] * 4, *d_leaves


class _BlockwiseForward(_Blockwise):
    """The same in forward mode, too, where the tangents are those of the formula."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _Blockwise.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4], *inputs[8:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Array | None) -> tuple[Array, ...]:
        with primals(ctx) as arrays:
            given = (*tangents[:4], *tangents[8:])
            moved = [torch.zeros_like(arrays[n]) if given[n] is None else given[n] for n in floats(arrays)]
            rule = tangents_of(_formula(ctx.options), len(arrays))
            return computed(rule, rule, *arrays, *moved)


def _formula(options: tuple[Any, ...]) -> Callable[..., tuple[Array, Array]]:
    """The formula of the reference kernel, of query, key, value, sinks and leaves: some queries at a time."""
    packed, scale, softcap, _ = options

    def formula(query: Array, key: Array, value: Array, sinks: Array | None, *leaves: Array) -> tuple[Array, Array]:
        mask, bias, dropout = unpack(packed, list(leaves))
        call = PartOfCall(query, key, value, mask, bias, scale, softcap, sinks)
        if dropout is not None:
            call = replace(call, dropout_rate=dropout.rate, dropout_key=dropout.words, dropout_broadcast=dropout.shared)
            call = replace(call, within=dropout.within)
        return reference.by_rows(call)

    return formula


def _formula_of_gradients(options: tuple[Any, ...], wanted: list[bool]) -> Callable[..., list[Array]]:
    """What `_attention_gradients` computes, from the formula: second derivatives are those of this."""
    formula = _formula(options)

    def gradients(*given: Array | None) -> list[Array]:
        arrays, (_, _, d_out, d_lse), leaves = given[:4], given[4:8], given[8:]
        inputs = (*arrays, *leaves)
        found = dict(zip(floats(inputs), gradients_of(formula, len(inputs))(*inputs, d_out, d_lse), strict=True))
        kept = [n for n, x in enumerate(arrays) if x is not None]
        return [found[n] for n in kept + [4 + n for n, want in enumerate(wanted) if want]]

    return gradients


def _conditions(
    packed: str, leaves: list[Array], scale: float, softcap: float | None, blocks: Sequence[int] | None
) -> walk.Conditions:
    mask, bias, dropout = unpack(packed, leaves)
    return walk.Conditions(mask, bias, dropout, scale, softcap, None if blocks is None else (blocks[0], blocks[1]))


def _heads_first(*arrays: Array) -> tuple[Array, ...]:
    """[B, length, heads, D] -> [B, heads, length, D], views whose rows are contiguous."""
    return tuple([(x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2) for x in arrays])
