"""The weights of attention as an array, for those who ask for them: L x S numbers for each head."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float

from maskattn.attention import Call, prepare
from maskattn_torch import lower
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.kernels.reference import pair_products
from maskattn_torch.types import Array

__all__ = ["weights"]


def weights(lse: Float[Array, "B L H"], call: Call[Any]) -> Float[Array, "B H L S"]:
    """exp(scale * q.k + bias - lse), where the mask allows, else 0: before dropout, in float32 (float64 for float64).

    Args:
        lse: of this call, as `attention` returns it. It carries what the weights' gradient owes to the denominator.
        call: without softcap and sinks. With `empty_rows="mean"` the weights of an empty row are 1 / S.
    """
    call = prepare(call, FRAMEWORK)
    query, key, sizes = call.query, call.key, call.sizes
    kv_len, kv_heads = key.shape[1], key.shape[2]
    q, k = (x.to(lse.dtype).transpose(1, 2) for x in (query, key))
    stacked = q.reshape(q.shape[0], kv_heads, -1, q.shape[3])  # the queries of a group, one after the other
    logits = call.scale * pair_products(stacked, k, call.precision).reshape(sizes)
    allowed = lower.allowed(call.mask, *sizes, device=query.device)
    added = lower.bias(call.bias, *sizes, device=query.device)
    lse = lse.transpose(1, 2)[..., None]
    empty = lse == -math.inf
    allowed = ~empty if allowed is None else allowed & ~empty
    if added is not None:
        allowed = allowed & (added != -math.inf)
        logits = logits + torch.where(allowed, added, 0).to(lse.dtype)
    found = torch.where(allowed, torch.exp(torch.where(allowed, logits - lse, 0)), 0)
    return torch.where(empty, 1 / max(kv_len, 1), found) if call.empty_rows == "mean" else found
