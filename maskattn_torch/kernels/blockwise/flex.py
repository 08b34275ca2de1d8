"""The blockwise kernel on CUDA: FlexAttention, whose BlockMask is made from the tiles of the mask.

What was run: the BlockMask, the functions of scores and the merging of sinks, against the reference kernel, with
FlexAttention's uncompiled form on the CPU. No GPU was at hand: the compiled form, and its gradients, were not run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor as Array

from maskattn import schedule
from maskattn._lookup import at_row
from maskattn.attention import Call
from maskattn.biases import Bias, T5Buckets
from maskattn.masks import Full, Mask
from maskattn_torch import lower

__all__ = ["attention", "unsupported"]


def attention(call: Call[Array], sinks: Array | None, compiled: bool = True) -> tuple[Array, Array]:
    """The output [B, L, H, Dv] and log-sum-exp [B, L, H] of a call, with `sinks` in float32; empty rows 0, -inf.

    The mask's data are read now (from the device, if they are there): once for each call.
    """
    mask, key, value = call.mask, call.key, call.value
    blocks = None
    if mask is not None and not isinstance(mask, Full):
        blocks = lower.to_block_mask(mask, *call.sizes, device=call.query.device)
        key, value = _reachable(mask, call.sizes, key, value)
    out, lse = _flex(compiled)(
        *(x.transpose(1, 2) for x in (call.query, key, value)),
        score_mod=_scores(call.bias, call.softcap),
        block_mask=blocks,
        scale=call.scale,
        enable_gqa=call.query.shape[2] != key.shape[2],
        return_lse=True,
    )
    if sinks is not None:
        total = torch.logaddexp(lse, sinks[:, None])
        out, lse = out * torch.exp(lse - total).unsqueeze(-1).to(out.dtype), total
    return out.transpose(1, 2), lse.transpose(1, 2)


def unsupported(call: Call[Array]) -> list[str]:
    """Every reason why FlexAttention cannot run a call."""
    reasons = []
    if call.dropout is not None:
        reasons.append("dropout: FlexAttention draws none")
    if call.query.dtype == torch.float64:
        reasons.append("float64: FlexAttention has no kernel for it")
    if 0 in (*call.query.shape, *call.key.shape, *call.value.shape):
        reasons.append("FlexAttention takes no empty tensors")
    return reasons


def _reachable(mask: Mask, sizes: tuple[int, int, int, int], key: Array, value: Array) -> tuple[Array, Array]:
    """Keys and values, 0 where no query of the batch row may attend to them: garbage there must not show."""
    keys = torch.as_tensor(schedule.reached(mask, *sizes)[1].any(1))
    if bool(keys.all()):
        return key, value
    keys = keys.to(key.device)[:, :, None, None]
    return torch.where(keys, key, 0), torch.where(keys, value, 0)


def _scores(bias: Bias | None, softcap: float | None) -> Callable[..., Array] | None:
    """softcap, then bias, as FlexAttention's function of a score and its place; None where there is neither."""
    if bias is None and softcap is None:
        return None
    values = None if bias is None else _t5_values(bias) if isinstance(bias, T5Buckets) else bias.values

    def score(x: Array, b: Array, h: Array, q: Array, k: Array) -> Array:
        if softcap is not None:
            x = softcap * torch.tanh(x / softcap)
        return x if values is None else x + values(b, h, q, k).to(x.dtype)

    return score


def _t5_values(bias: T5Buckets) -> Callable[..., Array]:
    """`bias.values` by a table of the bucket of each distance: its own rule compares with some 30 bounds, and makes
    them of integers that a compiler cannot hold."""
    far, device = bias.max_distance, bias.table.device
    rows = replace(bias, offset=0).rows(0, torch.zeros((), dtype=torch.int64), torch.arange(-far, far + 1)).to(device)

    def values(b: Array, h: Array, q: Array, k: Array) -> Array:
        apart = torch.clamp(k - q - at_row(bias.offset, b), -far, far)
        return bias.table[rows[apart + far], h if bias.table.shape[1] > 1 else 0]

    return values


@functools.cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # uncompiled it computes the whole score matrix: for tests alone
    return torch.compile(flex_attention) if compiled else flex_attention
