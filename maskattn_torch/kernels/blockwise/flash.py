"""One rectangle by SDPA's own CPU kernel, forward and backward.

The operators behind `torch.nn.functional.scaled_dot_product_attention` also give the log-sum-exp, which merges partial
results; and their backward pass, given the output and the log-sum-exp of *all* keys, computes one rectangle's exact
share of the gradients. They are not part of PyTorch's stable interface: `available` tries them once.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor as Array

from maskattn import standards
from maskattn.schedule.pieces import MIXED, TRIANGLE, Piece
from maskattn_torch.kernels.blockwise.patches import Forbidden

__all__ = ["available", "backward", "forward"]


def forward(scale: float, piece: Piece, q: Array, k: Array, v: Array, forbidden: Forbidden) -> tuple[Array, Array]:
    """q [N, H, rows, D], k and v [N, K, cols, D] -> out [N, H, rows, D], lse [N, H, rows]; a lost row gives 0, -inf."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = operator(q, k, v, 0.0, piece.kind == TRIANGLE, attn_mask=forbidden.added, scale=scale)
    if forbidden.lost is None:
        return out, lse
    # the operator gives such a row 0, or -0, and a log-sum-exp of 0
    return out.masked_fill_(forbidden.lost.unsqueeze(-1), 0), lse.masked_fill_(forbidden.lost, -torch.inf)


def backward(
    scale: float, piece: Piece, q: Array, k: Array, v: Array, forbidden: Forbidden, rows: tuple[Array, ...]
) -> tuple[Array, Array, Array]:
    """This rectangle's share of dq, dk, dv. `rows`: d_out, out, lse (+inf for rows without keys) of the queries."""
    d_out, out, lse = rows[:3]
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(d_out, q, k, v, out, lse, 0.0, piece.kind == TRIANGLE, attn_mask=forbidden.added, scale=scale)


@functools.cache
def available() -> bool:
    """Whether this PyTorch has the operators, with grouped heads, and they compute what is expected of them."""
    try:
        q, k, v, d_out = (torch.randn(1, heads, 3, 4, dtype=torch.float64) for heads in (2, 1, 1, 2))
        mask = torch.zeros(3, 3, dtype=torch.float64)
        mask[0, 1:] = mask[1] = -torch.inf
        none = Piece(range(1), range(2), 0, 0, 0, 0, 1, 3, 3, MIXED)
        forbidden = Forbidden(mask, torch.tensor([[[False, True, False]]]))
        out, lse = forward(0.5, none, q, k, v, forbidden)
        logits = q @ k.transpose(-1, -2) * 0.5 + mask
        right = [torch.logsumexp(logits, -1), torch.softmax(logits, -1).nan_to_num() @ v]
        grads = backward(0.5, none, q, k, v, forbidden, (d_out, out, lse.masked_fill(lse == -torch.inf, torch.inf)))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    limit = standards.value("flash.trial")
    shapes = [tuple(x.shape) for x in grads] == [tuple(x.shape) for x in (q, k, v)]
    return shapes and all(torch.allclose(x, y, rtol=limit, atol=0) for x, y in zip((lse, out), right, strict=True))
