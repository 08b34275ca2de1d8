"""The reference kernel: dense, written to be read beside the formula.

    x = softcap(scale * q.k) + bias        p = exp(x - max x) / sum exp(x - max x)        out = p v

(Vaswani et al. 2017, eq. 1.) Everything is computed in float32 (float64 for float64 inputs) and rounded once, at the
end.

What is masked out never leaks: a forbidden pair's logit is replaced before anything is computed from it, and the two
products below, with their derivatives, take a weight of exactly 0 to contribute exactly 0, whatever it meets.

There are derivatives of every order, in forward and reverse mode, however they are mixed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor as Array
from torch.utils import _pytree

from maskattn._pairs import Pairwise
from maskattn.attention import Call
from maskattn.biases import Bias, DenseBias, TableBias
from maskattn.masks import Dense, Mask, fold
from maskattn_torch import _autocast, lower, tables
from maskattn_torch._derivatives import computed, primals
from maskattn_torch._operators import applied
from maskattn_torch._symbolic import known
from maskattn_torch.dropout import dense, keep

#: Up to so many queries times keys are done at once; beyond, so many scores of all rows and heads, but so many queries.
_FEW, _AT_ONCE, _LEAST = 1 << 20, 1 << 22, 16
#: On a GPU: scores of so many bytes are made at once; beyond, a quarter of that.
AT_ONCE_BYTES = 1 << 30


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend densely: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    Long sequences are done some queries at a time, in memory that is linear in the lengths, as are the derivatives
    (in compiled code all at once: PyTorch's compiler is shown the formula, and would unroll it for each part).
    """
    if not torch.compiler.is_compiling() and rows_at_once(call) < call.sizes[2]:
        return by_rows(call)
    dropout, device = call.dropout, call.query.device
    return _formula(
        call,
        lower.allowed(call.mask, *call.sizes, device=device),
        lower.bias(call.bias, *call.sizes, device=device),
        None if dropout is None else dense(dropout, call.sizes),
    )


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: it runs every call."""
    return []


def by_rows(call: Call[Array]) -> tuple[Array, Array]:
    """`attention`, `rows_at_once` queries at a time; derivatives compute the scores of those again."""
    sizes, rows = call.sizes, max(1, rows_at_once(call))
    for node in (call.mask, call.bias):
        if node is not None:
            lower.check(node, *sizes)
    bias, added = call.bias, None
    if isinstance(bias, DenseBias):  # in rows, too, so that its gradient is gathered as that of the queries is
        added = bias.array.reshape(bias.shape)
        bias = None
    leaves, structure = _pytree.tree_flatten((call.mask, bias, call.dropout))
    bare: Any = call  # the graph holds what follows: it is to keep no tensor that was freed
    options = replace(bare, query=None, key=None, value=None, mask=None, bias=None, sinks=None, dropout_key=None)

    def some(first: int, query: Array, key: Array, value: Array, sinks: Any, added: Any, *leaves: Array) -> Any:
        mask, bias, dropout = _pytree.tree_unflatten(list(leaves), structure)
        at = _indices(sizes, first, query)
        allowed = None if mask is None else fold(mask, lambda part: _allowed(part, at))
        kept = None if dropout is None else keep(dropout, *at, sizes)
        added = _added(bias, at) if bias is not None else added
        return _formula(replace(options, query=query, key=key, value=value, sinks=sinks), allowed, added, kept)

    starts, queries = range(0, sizes[2], rows), call.query.split(rows, 1)
    parts = (added,) * len(starts) if added is None or added.shape[2] == 1 else added.split(rows, 2)
    found = []
    for first, query, part in zip(starts, queries, parts, strict=True):
        formula = partial(some, first)
        found.append(computed(formula, formula, query, call.key, call.value, call.sinks, part, *leaves))
    output, lse = (torch.cat(each, 1) for each in zip(*found, strict=True))
    return output, lse


def rows_at_once(call: Call[Array]) -> int:
    """How many queries are done at once: all of them, where that is no more scores than a few."""
    batch, heads, q_len, kv_len = call.sizes
    known = all(type(n) is int for n in call.sizes)
    if not known:
        return q_len
    row = max(1, batch * heads * kv_len)
    if call.query.is_cuda:  # as many as a GPU has in memory anyway: each operation is a wait of its own
        bytes_of = max(4, call.query.dtype.itemsize)
        few = q_len * row * bytes_of <= AT_ONCE_BYTES
        return q_len if few else min(q_len, max(1, AT_ONCE_BYTES // 4 // (row * bytes_of)))
    if q_len * kv_len <= _FEW:
        return q_len
    return min(q_len, max(_LEAST, _AT_ONCE // row))


def _formula(call: Call[Array], allowed: Array | None, added: Array | None, kept: Array | None) -> tuple[Array, Array]:
    """The output and the log-sum-exp, where tensors say what is allowed, added, and kept by dropout."""
    query, key, value, sinks = call.query, call.key, call.value, call.sinks
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, heads, q_len, kv_len = sizes = call.sizes
    kv_heads = key.shape[2]

    q = _heads_first(query.to(dtype))
    k = _heads_first(key.to(dtype))
    v = _heads_first(value.to(dtype))
    if torch.compiler.is_exporting() and not known(heads == kv_heads):
        # repeated: whether lengths that are left open can be stacked (below), an export would ask of them
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        kv_heads = heads

    allowed = torch.ones((1, 1, 1, kv_len), dtype=torch.bool, device=q.device) if allowed is None else allowed
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
    if kept is not None:
        p = torch.where(kept, p / (1.0 - call.dropout_rate), 0)
    out = _ungroup(weighted_sum(_group(p, kv_heads), v, call.precision), (batch, heads, q_len, v.shape[-1]))
    if call.empty_rows == "nan" and sink is None:
        out = torch.where(empty, math.nan, out)
    return _heads_first(out).to(query.dtype), lse[..., 0].transpose(1, 2)


def pair_products(a: Array, b: Array, precision: str) -> Array:
    """a [..., M, D], b [..., N, D] -> [..., M, N]: the product of every row of `a` with every row of `b`.

    What is not finite stays in its own row and column; in the derivative, a pair whose cotangent is 0 contributes 0.
    """
    products: Array = applied(_PairProductsForward, _PairProducts, a, b, precision)
    return products


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


class _PairProductsForward(_PairProducts):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Array, Array, str], output: Array) -> None:
        _PairProducts.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, d_a: Array | None, d_b: Array | None, _: None) -> Array:
        with primals(ctx) as (a, b):
            terms = [] if d_a is None else [pair_products(d_a, b, ctx.precision)]
            return _sum(terms if d_b is None else [*terms, pair_products(a, d_b, ctx.precision)])


def weighted_sum(weights: Array, rows: Array, precision: str) -> Array:
    """weights [..., M, N], rows [..., N, D] -> [..., M, D], where a weight of exactly 0 contributes exactly +0.

    The finite parts are multiplied; the result is NaN where a weight that is not 0 meets a value that is not finite, or
    a weight is itself not finite. No result is -0.
    """
    total: Array = applied(_WeightedSumForward, _WeightedSum, weights, rows, precision)
    return total


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


class _WeightedSumForward(_WeightedSum):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Array, Array, str], output: Array) -> None:
        _WeightedSum.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, d_weights: Array | None, d_rows: Array | None, _: None) -> Array:
        with primals(ctx) as (weights, rows):
            terms = [] if d_weights is None else [weighted_sum(d_weights, rows, ctx.precision)]
            return _sum(terms if d_rows is None else [*terms, weighted_sum(weights, d_rows, ctx.precision)])


def _sum(terms: list[Array]) -> Array:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


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


def _indices(sizes: tuple[int, int, int, int], first: int, query: Array) -> tuple[Array, Array, Array, Array]:
    """(b, h, q, k) of the pairs of some queries, those from `first` on, rank 4."""
    batch, heads, _, kv_len = sizes
    ranges = ((0, batch), (0, heads), (first, first + query.shape[1]), (0, kv_len))
    indices = (torch.arange(*each, device=query.device) for each in ranges)
    b, h, q, k = (x.reshape([-1 if i == axis else 1 for i in range(4)]) for axis, x in enumerate(indices))
    return b, h, q, k


def _read(node: Pairwise, at: tuple[Array, ...]) -> list[Array]:
    """The indices that a mask or bias reads, 0 for the others."""
    return [x if name in node.depends else x.new_zeros((1, 1, 1, 1)) for name, x in zip("bhqk", at, strict=True)]


def _allowed(mask: Mask, at: tuple[Array, ...]) -> Array:
    """Where one part of a mask's expression allows, rank 4, on the axes that it reads."""
    if not isinstance(mask, Dense):
        return mask.allowed(*_read(mask, at))
    keep = mask.keep.reshape(mask.shape)
    return keep if keep.shape[2] == 1 else keep.index_select(2, at[2].reshape(-1))


def _added(bias: Bias, at: tuple[Array, ...]) -> Array:
    """A bias that is no DenseBias, rank 4, on the axes that it reads."""
    b, h, q, k = _read(bias, at)
    return tables.look_up(bias.table, bias.rows(b, q, k)) if isinstance(bias, TableBias) else bias.values(b, h, q, k)


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
