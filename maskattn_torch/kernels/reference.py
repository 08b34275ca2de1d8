"""The reference kernel: dense, written to be read beside the formula.

    x = softcap(scale * q.k) + bias        p = exp(x - max x) / sum exp(x - max x)        out = p v

(Vaswani et al. 2017, eq. 1.) Everything is computed in float32 (float64 for float64 inputs) and rounded once, at the
end.

What is masked out never leaks: a forbidden pair's logit is replaced before anything is computed from it, and the two
products below, with their derivatives, take a weight of exactly 0 to contribute exactly 0, whatever it meets. Both have
derivatives of every order in reverse mode.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor as Array

from maskattn.attention import Call
from maskattn_torch import _autocast, lower
from maskattn_torch.dropout import dense


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend densely: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H]."""
    query, key, value, sinks = call.query, call.key, call.value, call.sinks
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, heads, q_len, kv_len = sizes = call.sizes
    kv_heads = key.shape[2]

    q = _heads_first(query.to(dtype))
    k = _heads_first(key.to(dtype))
    v = _heads_first(value.to(dtype))

    allowed = lower.allowed(call.mask, *sizes, device=query.device)
    allowed = torch.ones((1, 1, 1, kv_len), dtype=torch.bool, device=q.device) if allowed is None else allowed
    added = lower.bias(call.bias, *sizes, device=query.device)
    if added is not None:
        added = added.to(dtype)
        allowed = allowed & (added != -math.inf)
    allowed = allowed.expand(*allowed.shape[:3], kv_len)

    # head h reads key/value head h // (H // K): the queries of one group are stacked, so k and v are never repeated
    logits = _ungroup(pair_products(_group(q, kv_heads), k, call.precision), sizes)
    logits = torch.where(allowed, call.scale * logits, 0)
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if added is not None:
        logits = logits + torch.where(allowed, added, 0)
    logits = torch.where(allowed, logits, -math.inf)

    highest = (
        logits.detach().amax(dim=-1, keepdim=True) if kv_len else logits.new_full((batch, heads, q_len, 1), -math.inf)
    )
    sink = None if sinks is None else sinks.to(dtype)[None, :, None, None]
    if sink is not None:
        highest = torch.maximum(highest, sink.detach())
    highest = torch.where(highest == -math.inf, 0, highest)
    e = torch.exp(logits - highest)
    total = torch.sum(e, dim=-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - highest)
    empty = ~torch.any(allowed, dim=-1, keepdim=True) & (total == 0)
    total = torch.where(empty, 1, total)
    p = torch.where(allowed, e / total, 0)
    lse = torch.where(empty, -math.inf, highest + torch.log(total))

    if call.empty_rows == "mean" and sink is None and kv_len:
        p = torch.where(empty, 1 / kv_len, p)
    dropout = call.dropout
    if dropout is not None:
        p = torch.where(dense(dropout, sizes), p / (1.0 - dropout.rate), 0)
    out = _ungroup(weighted_sum(_group(p, kv_heads), v, call.precision), (batch, heads, q_len, v.shape[-1]))
    if call.empty_rows == "nan" and sink is None:
        out = torch.where(empty, math.nan, out)
    return _heads_first(out).to(query.dtype), lse[..., 0].transpose(1, 2)


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: it runs every call."""
    return []


def pair_products(a: Array, b: Array, precision: str) -> Array:
    """a [..., M, D], b [..., N, D] -> [..., M, N]: the product of every row of `a` with every row of `b`.

    What is not finite stays in its own row and column; in the derivative, a pair whose cotangent is 0 contributes 0.
    """
    return _PairProducts.apply(a, b, precision)


class _PairProducts(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Array, b: Array, precision: str) -> Array:
        return _matmul(a, b.transpose(-1, -2), precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Array, Array, str], output: Array) -> None:
        a, b, ctx.precision = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array, Array, None]:
        a, b = ctx.saved_tensors
        d_b = weighted_sum(cotangent.transpose(-1, -2), a, ctx.precision)
        return weighted_sum(cotangent, b, ctx.precision), d_b, None


def weighted_sum(weights: Array, rows: Array, precision: str) -> Array:
    """weights [..., M, N], rows [..., N, D] -> [..., M, D], where a weight of exactly 0 contributes exactly +0.

    The finite parts are multiplied; the result is NaN where a weight that is not 0 meets a value that is not finite, or
    a weight is itself not finite. No result is -0.
    """
    return _WeightedSum.apply(weights, rows, precision)


class _WeightedSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Array, rows: Array, precision: str) -> Array:
        strange_weight, strange_value = ~torch.isfinite(weights), ~torch.isfinite(rows)
        product = _matmul(torch.where(strange_weight, 0, weights), torch.where(strange_value, 0, rows), precision)
        met = _matmul((weights != 0).to(rows.dtype), strange_value.to(rows.dtype), "default") > 0
        met = met | torch.any(strange_weight, dim=-1, keepdim=True)
        return torch.where(met, math.nan, torch.where(product == 0, 0, product))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Array, Array, str], output: Array) -> None:
        weights, rows, ctx.precision = inputs
        ctx.save_for_backward(weights, rows)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array, Array, None]:
        weights, rows = ctx.saved_tensors
        d_rows = weighted_sum(weights.transpose(-1, -2), cotangent, ctx.precision)
        return pair_products(cotangent, rows, ctx.precision), d_rows, None


def _matmul(a: Array, b: Array, precision: str) -> Array:
    """a @ b outside autocast, which would compute it in half precision.

    `precision` is PyTorch's float32 matmul precision ("high" allows TF32; "default" leaves the process's setting). It
    applies on CUDA devices; on the CPU nothing changes, and in compiled code the process's setting (PyTorch's default:
    "highest") holds.
    """
    with _autocast.off(a.device):
        if precision == "default" or not a.is_cuda or torch.compiler.is_compiling():
            return torch.matmul(a, b)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return torch.matmul(a, b)
        finally:
            torch.set_float32_matmul_precision(before)


def _heads_first(x: Array) -> Array:
    """[B, length, heads, D] <-> [B, heads, length, D]."""
    return x.transpose(1, 2)


def _group(x: Array, kv_heads: int) -> Array:
    """[B, H, L, N] -> [B, K, H // K * L, N]: the rows that read one key/value head, one after the other."""
    batch, heads, length, width = x.shape
    return x.reshape(batch, kv_heads, heads // max(kv_heads, 1) * length, width)


def _ungroup(x: Array, shape: tuple[int, ...]) -> Array:
    """[B, K, H // K * L, N] -> [B, H, L, N]."""
    return x.reshape(shape)
