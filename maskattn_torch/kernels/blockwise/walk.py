"""The walk over the calls of a plan: partial results merged by their log-sum-exp, gradients added up.

The backward pass is the same walk: with the output and the log-sum-exp of all keys, each rectangle gives its own share
of the gradients (Dao et al. 2022, FlashAttention, section 3.1 and appendix B).

Arrays are [B, heads, length, ...] views of contiguous [B, length, heads, ...] ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from maskattn import blocks
from maskattn.biases import Additive, ALiBi, Bias
from maskattn.masks import Mask
from maskattn.schedule.pieces import Limits, Piece
from maskattn_torch.dropout import Dropout
from maskattn_torch.kernels.blockwise import (
    bias as blockwise_bias,
    flash as blockwise_flash,
    products as blockwise_products,
)
from maskattn_torch.kernels.blockwise.calls import Plan, Sizes, kv_range, plan, reached, window

Array = Any

__all__ = ["Problem", "backward", "forward"]

#: Rectangles for plain matrix products, and the pairs that one call does: its buffers stay in a cache.
_LIMITS, _AREA = Limits(256, 1024), 1 << 21


@dataclass(frozen=True)
class Problem:
    """A call's mask, bias, dropout (bound to PyTorch, or None) and options."""

    mask: Mask | None
    bias: Bias | None
    dropout: Dropout | None
    scale: float
    softcap: float | None


def forward(problem: Problem, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """q [B, H, L, D], k [B, K, S, D], v [B, K, S, Dv] -> out [B, H, L, Dv], lse [B, H, L]: 0, -inf in empty rows."""
    sizes, found, terms = _prepared(problem, q, k, v)
    out, lse = _forward(problem, found, sizes, terms, q, k, v)
    if _exposed(problem, found) and not _finite(out):
        cleaned = _cleaned(problem, found, sizes, [q], [k, v])
        if cleaned is not None:
            out, lse = _forward(problem, found, sizes, terms, *cleaned)
    return out, lse


def backward(
    problem: Problem,
    wanted: list[bool],
    q: Array,
    k: Array,
    v: Array,
    d_out: Array,
    out: Array,
    lse: Array,
    d_lse: Array | None,
) -> tuple[Array, Array, Array, list[Array]]:
    """dq, dk, dv and the gradients of the bias's arrays that are `wanted`; d_lse is None where it is 0."""
    # SDPA's operator has no argument for the cotangent of lse
    sizes, found, terms = _prepared(problem, q, k, v, plain=d_lse is not None)
    delta = (d_out * out).sum(-1) - (0 if d_lse is None else d_lse) if terms is not None else torch.zeros_like(lse)
    rows = [d_out, out, lse.masked_fill(lse == -torch.inf, torch.inf), delta]
    dq, dk, dv, biases = _backward(problem, found, sizes, terms, wanted, q, k, v, rows)
    if _exposed(problem, found) and not all(_finite(x) for x in (dq, dk, dv)):
        cleaned = _cleaned(problem, found, sizes, [q, d_out, delta.unsqueeze(-1)], [k, v])
        if cleaned is not None:
            q, rows[0], delta, k, v = cleaned
            rows[3] = delta[..., 0]
            dq, dk, dv, biases = _backward(problem, found, sizes, terms, wanted, q, k, v, rows)
    return dq, dk, dv, biases.results()


def _prepared(
    problem: Problem, q: Array, k: Array, v: Array, plain: bool = False
) -> tuple[Sizes, Plan, blockwise_products.Terms | None]:
    """Sizes, the plan, and the terms of plain products, None where SDPA's kernel does it."""
    (batch, heads, q_len, width), kv_heads, kv_len = q.shape, k.shape[1], k.shape[2]
    sizes = Sizes(batch, heads, kv_heads, q_len, kv_len, max(width, v.shape[3]), q.dtype)
    other = (problem.bias, problem.softcap, problem.dropout)
    plain = plain or any(x is not None for x in other) or width != v.shape[3] or not blockwise_flash.available()
    if not plain:
        return sizes, plan(problem.mask, sizes), None
    sizes = replace(sizes, limits=Limits(*(blocks.forced() or _LIMITS)), area=_AREA)
    shape = (batch, heads, q_len, kv_len)
    terms = blockwise_products.Terms(problem.scale, problem.softcap, problem.bias, problem.dropout, shape)
    return sizes, plan(problem.mask, sizes), terms


def _forward(
    problem: Problem, found: Plan, sizes: Sizes, terms: Any, q: Array, k: Array, v: Array
) -> tuple[Array, Array]:
    make = torch.empty if found.covered else torch.zeros
    shape = (sizes.batch, sizes.q_len, sizes.heads)
    if not found.whole:
        out = make((*shape, v.shape[3]), dtype=q.dtype).transpose(1, 2)
        lse = torch.full(shape, -torch.inf, dtype=q.dtype).transpose(1, 2)
    for call in found.joined:
        piece, forbidden = call.piece, call.forbidden(problem.mask, q.dtype)
        heads = kv_range(piece, sizes)
        parts = (window(q, piece, "q", piece.heads), window(k, piece, "k", heads), window(v, piece, "k", heads))
        if terms is None:
            one = blockwise_flash.forward(problem.scale, piece, *parts, forbidden)
        else:
            one = blockwise_products.forward(terms, piece, *parts, forbidden)
        if found.whole:
            return _joined(one[0], sizes), _joined(one[1], sizes)
        into = (window(out, piece, "q", piece.heads), window(lse, piece, "q", piece.heads))
        if piece.first:
            into[0].copy_(one[0])
            into[1].copy_(one[1])
        else:
            _merge(*into, *one)
    return out, lse


def _joined(x: Array, sizes: Sizes) -> Array:
    """[count, H, rows, ...] -> [B, H, L, ...], where rectangles or batch rows follow one another."""
    return x.transpose(1, 2).reshape(sizes.batch, sizes.q_len, sizes.heads, *x.shape[3:]).transpose(1, 2)


def _merge(out: Array, lse: Array, other: Array, other_lse: Array) -> None:
    """Take in, in place, the result over other keys."""
    # one weight and its complement: with one exponential for each, what lse lost by rounding would scale the output
    share = torch.sigmoid(other_lse - lse).masked_fill_(other_lse == -torch.inf, 0).unsqueeze(-1)
    out.mul_(1 - share).addcmul_(other, share)  # not lerp_: it would make an infinite value NaN
    lse.copy_(torch.logaddexp(lse, other_lse))


def _backward(
    problem: Problem,
    found: Plan,
    sizes: Sizes,
    terms: Any,
    wanted: list[bool],
    q: Array,
    k: Array,
    v: Array,
    rows: list[Array],
) -> tuple[Array, Array, Array, blockwise_bias.Gradients]:
    totals = [torch.zeros_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k, v)]
    dq, dk, dv = (x.transpose(1, 2) for x in totals)
    biases = blockwise_bias.Gradients(problem.bias, wanted, q.dtype)
    for call in found.calls:
        piece, forbidden = call.piece, call.forbidden(problem.mask, q.dtype)
        heads = kv_range(piece, sizes)
        parts = (window(q, piece, "q", piece.heads), window(k, piece, "k", heads), window(v, piece, "k", heads))
        of_rows = tuple(window(x, piece, "q", piece.heads) for x in rows)
        if terms is None:
            shares = blockwise_flash.backward(problem.scale, piece, *parts, forbidden, of_rows)
        else:
            shares = blockwise_products.backward(terms, piece, *parts, forbidden, of_rows, biases)
        window(dq, piece, "q", piece.heads).add_(shares[0])
        _add_keys(dk, piece, heads, shares[1])
        _add_keys(dv, piece, heads, shares[2])
    return dq, dk, dv, biases


def _add_keys(total: Array, piece: Piece, heads: range, share: Array) -> None:
    """Add to the keys of a call, whose rectangles may have keys in common."""
    if piece.count == 1:
        window(total, piece, "k", heads).add_(share)
    elif piece.k_step == 0:
        window(total, replace(piece, count=1), "k", heads).add_(share.sum(0, keepdim=True))
    else:
        apart = -(-piece.cols // piece.k_step)  # so many rectangles further, the keys are others
        for n in range(min(apart, piece.count)):
            part = share[n::apart]
            some = replace(piece, k=piece.k + n * piece.k_step, k_step=apart * piece.k_step, count=len(part))
            window(total, some, "k", heads).add_(part)


def _finite(x: Array) -> bool:
    return bool(torch.isfinite(x.sum()))


def _exposed(problem: Problem, found: Plan) -> bool:
    """Whether rows or keys without a partner may be in a call: what they hold must not show."""
    return found.exposed or not isinstance(problem.bias, (Additive, ALiBi, type(None)))


def _cleaned(
    problem: Problem, found: Plan, sizes: Sizes, of_rows: list[Array], of_keys: list[Array]
) -> list[Array] | None:
    """The arrays with 0 in rows and keys that no allowed pair has; None where all of those are 0 already."""
    bias = problem.bias
    added = None if bias is None else lambda piece: blockwise_bias.values(bias, piece, sizes.dtype, None)
    rows, keys = reached(found.calls, problem.mask, sizes, added)
    held = [(x, rows) for x in of_rows] + [(x, keys) for x in of_keys]
    if not any(bool(x[~there].any()) for x, there in held):
        return None
    return [x.masked_fill(~there.unsqueeze(-1), 0) for x, there in held]
