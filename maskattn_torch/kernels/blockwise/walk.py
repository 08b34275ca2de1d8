"""The walk over the patches of a call: partial results merged by their log-sum-exp, gradients added up.

The backward pass is the same walk: with the output and the log-sum-exp of all keys, each patch gives its own share of
the gradients (Dao et al. 2022, FlashAttention, section 3.1 and appendix B).

Arrays are [B, heads, length, ...] views of contiguous [B, length, heads, ...] ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor as Array
from torch.utils._python_dispatch import _disable_current_modes

from maskattn._fields import peek
from maskattn.attention import Dropout
from maskattn.biases import Additive, ALiBi, Bias
from maskattn.masks import Mask
from maskattn.schedule.pieces import Limits, Piece
from maskattn_torch.kernels.blockwise import additions, flash, products
from maskattn_torch.kernels.blockwise.patches import Patch, Patches, PatchSizes, patches_of, reached
from maskattn_torch.kernels.blockwise.windows import kv_range, window
from maskattn_torch.kernels.merging import merge_into

__all__ = ["Conditions", "backward", "forward", "pairs"]

#: Rectangles for plain matrix products, and the pairs that one patch has: its buffers stay in a cache.
_LIMITS, _AREA = Limits(256, 1024), 1 << 21
#: A log-sum-exp of this size is an ulp of 2^-9 off, in float32.
_OVERWHELMING = float(1 << 14)


@dataclass(frozen=True)
class Conditions:
    """A call's mask, bias, dropout (bound to PyTorch, or None) and options."""

    mask: Mask | None
    bias: Bias | None
    dropout: Dropout[Array] | None
    scale: float
    softcap: float | None
    blocks: tuple[int, int] | None


@dataclass(frozen=True)
class _Walk:
    """A call, the patches that do it, and the terms of plain products, None where SDPA's kernel does it."""

    conditions: Conditions
    sizes: PatchSizes
    patches: Patches
    terms: products.Terms | None


def forward(conditions: Conditions, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """q [B, H, L, D], k [B, K, S, D], v [B, K, S, Dv] -> out [B, L, H, Dv], lse [B, L, H]: 0, -inf in empty rows."""
    walk = _prepared(conditions, q, k, v)
    out, lse = _forward(walk, q, k, v)
    if _exposed(walk) and not _finite(out):
        cleaned = _cleaned(walk, [q], [k, v])
        if cleaned is not None:
            out, lse = _forward(walk, *cleaned)
    return out, lse


def backward(
    conditions: Conditions,
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
    walk = _prepared(conditions, q, k, v, plain=d_lse is not None)
    delta = (d_out * out).sum(-1) - (0 if d_lse is None else d_lse) if walk.terms is not None else torch.zeros_like(lse)
    rows = [d_out, out, lse.masked_fill(lse == -torch.inf, torch.inf), delta]
    if conditions.bias is not None and _overwhelmed(lse):
        total = _total(walk, q, k, v, rows)
        rows[0], rows[3] = d_out / total.unsqueeze(-1), delta / total
    dq, dk, dv, of_bias = _backward(walk, wanted, q, k, v, rows)
    if _exposed(walk) and not all(_finite(x) for x in (dq, dk, dv)):
        cleaned = _cleaned(walk, [q, d_out, delta.unsqueeze(-1)], [k, v])
        if cleaned is not None:
            q, rows[0], delta, k, v = cleaned
            rows[3] = delta[..., 0]
            dq, dk, dv, of_bias = _backward(walk, wanted, q, k, v, rows)
    return dq, dk, dv, of_bias.results()


def pairs(conditions: Conditions, q: Array, k: Array, v: Array, plain: bool = False) -> int:
    """How many pairs of a query and a key are looked at, of all heads; all of them, where the mask cannot be read."""
    leaves: list[Array] = []
    if conditions.mask is not None:
        conditions.mask.map_data(leaves.append)
    with _disable_current_modes():  # tensors may be fake, but a mask without data is what it is
        if any(peek(x) is None for x in leaves) or not all(type(n) is int for n in (*q.shape, *k.shape)):
            return q.shape[:3].numel() * k.shape[2]
        pieces = [patch.piece for patch in _prepared(conditions, q, k, v, plain).patches.backward]
    return sum(x.count * len(x.batch) * len(x.heads) * x.rows * x.cols for x in pieces)


def _prepared(conditions: Conditions, q: Array, k: Array, v: Array, plain: bool = False) -> _Walk:
    (batch, heads, q_len, width), kv_heads, kv_len = q.shape, k.shape[1], k.shape[2]
    sizes = PatchSizes(batch, heads, kv_heads, q_len, kv_len, max(width, v.shape[3]), q.dtype, conditions.blocks)
    other = (conditions.bias, conditions.softcap, conditions.dropout)
    plain = plain or any(x is not None for x in other) or width != v.shape[3] or not flash.available()
    if not plain:
        return _Walk(conditions, sizes, patches_of(conditions.mask, sizes), None)
    sizes = sizes._replace(limits=Limits(*(conditions.blocks or _LIMITS)), area=_AREA)
    shape = (batch, heads, q_len, kv_len)
    terms = products.Terms(conditions.scale, conditions.softcap, conditions.bias, conditions.dropout, shape)
    return _Walk(conditions, sizes, patches_of(conditions.mask, sizes), terms)


def _forward(walk: _Walk, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    sizes, patches = walk.sizes, walk.patches
    make = torch.empty if patches.covered else torch.zeros
    shape = (sizes.batch, sizes.q_len, sizes.heads)
    if not patches.whole:
        ordered = make((*shape, v.shape[3]), dtype=q.dtype), torch.full(shape, -torch.inf, dtype=q.dtype)
        out, lse = (x.transpose(1, 2) for x in ordered)
    for patch in patches.forward:
        piece, forbidden = patch.piece, patch.forbidden(walk.conditions.mask, q.dtype)
        read = _read(walk, patch, q, k, v)
        if walk.terms is None:
            one = flash.forward(walk.conditions.scale, piece, *read, forbidden)
        else:
            one = products.forward(walk.terms, piece, *read, forbidden)
        if patches.whole:
            return _in_order(one[0], sizes), _in_order(one[1], sizes)
        into = (window(out, piece, "q", piece.heads), window(lse, piece, "q", piece.heads))
        if piece.first:
            into[0].copy_(one[0])
            into[1].copy_(one[1])
        else:
            merge_into(*into, *one)
    return ordered


def _in_order(x: Array, sizes: PatchSizes) -> Array:
    """[count, H, rows, ...] -> [B, L, H, ...], where rectangles or batch rows follow one another."""
    x = x.transpose(1, 2)
    return x if x.shape[0] == sizes.batch else x.reshape(sizes.batch, sizes.q_len, sizes.heads, *x.shape[3:])


def _backward(
    walk: _Walk, wanted: list[bool], q: Array, k: Array, v: Array, rows: list[Array]
) -> tuple[Array, Array, Array, additions.BiasGradients]:
    totals = [torch.zeros_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k, v)]
    dq, dk, dv = (x.transpose(1, 2) for x in totals)
    of_bias = additions.BiasGradients(walk.conditions.bias, wanted, q.dtype)
    for patch in walk.patches.backward:
        piece, forbidden = patch.piece, patch.forbidden(walk.conditions.mask, q.dtype)
        read = _read(walk, patch, q, k, v)
        of_rows = tuple(window(x, piece, "q", piece.heads) for x in rows)
        if walk.terms is None:
            shares = flash.backward(walk.conditions.scale, piece, *read, forbidden, of_rows)
        else:
            shares = products.backward(walk.terms, piece, *read, forbidden, of_rows, of_bias)
        heads = kv_range(piece, walk.sizes.group)
        window(dq, piece, "q", piece.heads).add_(shares[0])
        _add_keys(dk, piece, heads, shares[1])
        _add_keys(dv, piece, heads, shares[2])
    return dq, dk, dv, of_bias


def _overwhelmed(lse: Array) -> bool:
    """Whether a bias makes a log-sum-exp so large that weights found with it need not add up to 1."""
    return bool(((lse.abs() > _OVERWHELMING) & lse.isfinite()).any())


def _total(walk: _Walk, q: Array, k: Array, v: Array, rows: list[Array]) -> Array:
    """What the weights of each row add up to, as the backward pass finds them: [B, H, L]. Its gradients, being linear
    in d_out and delta, are right for cotangents divided by it. 1 for rows that may attend to nothing.
    """
    assert walk.terms is not None
    total = torch.zeros_like(rows[2])
    for patch in walk.patches.backward:
        piece, forbidden = patch.piece, patch.forbidden(walk.conditions.mask, q.dtype)
        part_q, part_k, _ = _read(walk, patch, q, k, v)
        lse = window(rows[2], piece, "q", piece.heads)
        share = products.weights(walk.terms, piece, part_q, part_k, forbidden, lse).sum(-1)
        window(total, piece, "q", piece.heads).add_(share)
    return total.masked_fill_(total == 0, 1)


def _read(walk: _Walk, patch: Patch, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """What a patch reads of queries, keys and values."""
    piece, heads = patch.piece, kv_range(patch.piece, walk.sizes.group)
    return window(q, piece, "q", piece.heads), window(k, piece, "k", heads), window(v, piece, "k", heads)


def _add_keys(total: Array, piece: Piece, heads: range, share: Array) -> None:
    """Add to the keys of a patch, whose rectangles may have keys in common."""
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


def _exposed(walk: _Walk) -> bool:
    """Whether rows or keys without a partner may be in a patch: what they hold must not show."""
    return walk.patches.exposed or not isinstance(walk.conditions.bias, (Additive, ALiBi, type(None)))


def _cleaned(walk: _Walk, of_rows: list[Array], of_keys: list[Array]) -> list[Array] | None:
    """The arrays with 0 in rows and keys that no allowed pair has; None where all of those are 0 already."""
    bias, dtype = walk.conditions.bias, walk.sizes.dtype
    added = None if bias is None else lambda piece: additions.values(bias, piece, dtype, None)
    rows, keys = reached(walk.patches.backward, walk.conditions.mask, walk.sizes, added)
    held = [(x, rows) for x in of_rows] + [(x, keys) for x in of_keys]
    if not any(bool(x[~there].any()) for x, there in held):
        return None
    return [x.masked_fill(~there.unsqueeze(-1), 0) for x, there in held]
