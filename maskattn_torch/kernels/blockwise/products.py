"""One rectangle by plain matrix products, for what SDPA's kernel cannot express: bias, softcap, dropout, Dv != D.

    x = softcap(scale * q.k) + bias        p = exp(x - lse)        out = (p * keep / (1 - rate)) v

Buffers are [count, heads, rows, cols], small enough for a cache, and are written in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor as Array

from maskattn.attention import Dropout
from maskattn.biases import Bias
from maskattn.schedule.pieces import Piece
from maskattn_torch.dropout import keep
from maskattn_torch.kernels.blockwise import additions
from maskattn_torch.kernels.blockwise.patches import Forbidden
from maskattn_torch.kernels.blockwise.windows import indices

__all__ = ["Terms", "backward", "forward", "weights"]


@dataclass(frozen=True)
class Terms:
    """What the logits and weights are made of besides q, k and v. `sizes`: (B, H, L, S) of the whole score matrix."""

    scale: float
    softcap: float | None
    bias: Bias | None
    dropout: Dropout[Array] | None
    sizes: tuple[int, int, int, int]


def forward(terms: Terms, piece: Piece, q: Array, k: Array, v: Array, forbidden: Forbidden) -> tuple[Array, Array]:
    """q [N, H, rows, D], k [N, K, cols, D], v [N, K, cols, Dv] -> out [N, H, rows, Dv], lse [N, H, rows]."""
    x, _ = _logits(terms, piece, _stacked(q * terms.scale, k), k, forbidden)
    top = x.amax(-1, keepdim=True)
    top = top.masked_fill_(top == -torch.inf, 0)
    weights = x.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    lse = (total.log() + top)[..., 0]
    kept = _kept(terms, piece, weights)
    if kept is not None:
        weights = weights.mul_(kept)
    out = torch.matmul(_stacked(weights, v), v).view(*weights.shape[:3], v.shape[-1])
    lost = total == 0
    return out.div_(total.masked_fill_(lost, 1)).masked_fill_(lost, 0), lse


def backward(
    terms: Terms,
    piece: Piece,
    q: Array,
    k: Array,
    v: Array,
    forbidden: Forbidden,
    rows: tuple[Array, ...],
    of_bias: additions.BiasGradients,
) -> tuple[Array, Array, Array]:
    """This rectangle's share of dq, dk, dv; that of the bias goes to `of_bias`.

    `rows`: of the queries, d_out, out, lse (+inf for rows without keys) and delta = sum(d_out * out) - d_lse.
    """
    d_out, _, lse, delta = rows
    stacked_q, stacked_d_out = _stacked(q * terms.scale, k), _stacked(d_out, k)
    x, slope = _logits(terms, piece, stacked_q, k, forbidden)
    p = x.sub_(lse.unsqueeze(-1)).exp_()
    dp = torch.matmul(stacked_d_out, v.transpose(-1, -2)).view(p.shape)
    kept = _kept(terms, piece, p)
    dropped = p
    if kept is not None:
        dp, dropped = dp.mul_(kept), p * kept
    dv = torch.matmul(_stacked(dropped, k).transpose(-1, -2), stacked_d_out)
    d_logits = dp.sub_(delta.unsqueeze(-1)).mul_(p)
    of_bias.add(piece, d_logits)
    if slope is not None:
        d_logits = d_logits.mul_(slope)
    d_logits = _stacked(d_logits, k)
    dq = torch.matmul(d_logits, k).view(q.shape).mul_(terms.scale)
    return dq, torch.matmul(d_logits.transpose(-1, -2), stacked_q), dv


def weights(terms: Terms, piece: Piece, q: Array, k: Array, forbidden: Forbidden, lse: Array) -> Array:
    """The weights [N, H, rows, cols] as `backward` finds them, with the log-sum-exp [N, H, rows]."""
    x, _ = _logits(terms, piece, _stacked(q * terms.scale, k), k, forbidden)
    return x.sub_(lse.unsqueeze(-1)).exp_()


def _logits(terms: Terms, piece: Piece, stacked_q: Array, k: Array, forbidden: Forbidden) -> tuple[Array, Array | None]:
    """The logits [N, H, rows, cols], and the softcap's derivative at them, or None."""
    heads = len(piece.heads)
    x = torch.matmul(stacked_q, k.transpose(-1, -2)).view(k.shape[0], heads, piece.rows, piece.cols)
    slope = None
    if terms.softcap is not None:
        x = x.div_(terms.softcap).tanh_()
        slope = 1 - x * x
        x = x.mul_(terms.softcap)
    if terms.bias is not None:
        x = x.add_(additions.values(terms.bias, piece, x.dtype, x.device))
    return x if forbidden.added is None else x.add_(forbidden.added), slope


def _kept(terms: Terms, piece: Piece, like: Array) -> Array | None:
    """keep / (1 - rate), or None without dropout."""
    if terms.dropout is None:
        return None
    kept = keep(terms.dropout, *indices(piece, like.device), terms.sizes)
    return kept.to(like.dtype).div_(1 - terms.dropout.rate)


def _stacked(x: Array, k: Array) -> Array:
    """[N, H, rows, n] -> [N, K, H // K * rows, n]: the heads that read one key/value head, one after the other."""
    rows = x.shape[1] // max(k.shape[1], 1) * x.shape[2]
    return x.reshape(x.shape[0], k.shape[1], rows, x.shape[-1])
