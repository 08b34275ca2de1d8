"""The fused kernel: what each platform's vendor gives, called with what the mask says in the vendor's own words.

That is `torch.nn.functional.scaled_dot_product_attention`, with `is_causal` where the mask is exactly that and a dense
mask otherwise. What it cannot express is refused by name. Its errors are the vendor's own.

Two things are made good, since the vendors leave them open: a row that may attend to nothing gives 0, whichever
implementation PyTorch chooses, and keys and values that no query of their batch row may attend to are taken as 0, so
that what is not finite in them reaches nothing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from maskattn import tiles
from maskattn.biases import DenseBias
from maskattn.masks import Causal
from maskattn_torch import lower
from maskattn_torch.dropout import Dropout

Array = Any

#: Dense masks of at most so many queries times keys are kept for the next call.
_KEPT = 1 << 20

#: Where the parity suite must not expect what the other kernels promise.
CONVENTIONS = {"lse": "none", "narrow": "rounded inside"}


def attention(
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
) -> tuple[Array, None]:
    """The vendor's attention: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], no lse.

    `mask` (True = may attend) and `bias` are objects bound to PyTorch, or None.
    """
    sizes = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    causal = bias is None and mask == Causal()
    if causal or mask is None and bias is None:
        allowed = added = None
        rows, keys = _reached(mask, None, sizes, query.device)
    else:
        allowed = None if mask is None else _allowed(mask, sizes, query.device)
        added = None if bias is None else lower.bias(bias, *sizes, device=query.device)
        if isinstance(bias, DenseBias):  # which may forbid by -inf
            finite = added != -math.inf
            allowed = finite if allowed is None else finite & allowed
            rows, keys = torch.any(allowed, -1), torch.any(allowed, -2)
        else:
            rows, keys = _reached(mask, allowed, sizes, query.device)
    dense = allowed
    if added is not None:
        dense = added.to(query.dtype)
        if allowed is not None:
            dense = torch.where(allowed, dense, -math.inf)
    with torch.autocast(query.device.type, enabled=False):  # which would compute float32 inputs in half precision
        out = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            _cleared(key, keys).transpose(1, 2),
            _cleared(value, keys).transpose(1, 2),
            attn_mask=dense,
            is_causal=causal,
            scale=scale,
            enable_gqa=query.shape[2] != key.shape[2],
        ).transpose(1, 2)
    # on the CPU every implementation of PyTorch's gives an empty row 0 (tested)
    if rows is not None and (empty_rows == "nan" or out.device.type != "cpu"):
        empty = (~rows).transpose(1, 2)[..., None]
        out = torch.where(empty, math.nan if empty_rows == "nan" else 0.0, out)
    return out, None


def unsupported(
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
    return_lse: bool = False,
) -> list[str]:
    """Everything that the vendor's function on this platform cannot express; [] where it runs the call."""
    reasons = []
    name = "scaled_dot_product_attention"
    if dropout is not None:
        reasons.append(f"{name} has no dropout from a key")
    if return_lse:
        reasons.append(f"return_lse: {name} gives no log-sum-exp")
    if empty_rows == "mean":
        reasons.append('empty_rows="mean": only "reference" and "exact" average all values')
    if query.is_cuda and precision != "default":
        reasons.append(f"precision={precision!r}: on a GPU {name} has the process's setting, which is 'default'")
    if 0 in (*query.shape, *key.shape, *value.shape):
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
        reasons.append(f"{name} takes no empty tensors, got {shapes}")
    if sinks is not None:
        reasons.append(f"{name} has no sinks")
    if softcap is not None:
        reasons.append(f"{name} has no softcap")
    return reasons


def _allowed(mask: Any, sizes: tuple[int, int, int, int], device: Any) -> Array | None:
    """The dense mask; that of a mask without data is made once."""
    if mask.flatten()[0] or torch.compiler.is_compiling() or sizes[2] * sizes[3] > _KEPT:
        return lower.allowed(mask, *sizes, device=device)
    return _allowed_statically(mask, sizes, device)


def _reached(
    mask: Any, allowed: Array | None, sizes: tuple[int, int, int, int], device: Any
) -> tuple[Array | None, Array | None]:
    """Which rows may attend to something, bool [B, H, L], and which keys something may attend to, bool [B, H, S].

    Axes that the mask does not read have size 1. None where all are. `allowed` is the mask as a tensor, or None where
    that was not needed.
    """
    if mask is None:
        return None, None
    if not mask.flatten()[0] and not torch.compiler.is_compiling():
        return tuple(None if x.all() else torch.as_tensor(x, device=device) for x in _reached_statically(mask, sizes))
    if allowed is None:
        allowed = _allowed(mask, sizes, device)
    return (None, None) if allowed is None else (torch.any(allowed, -1), torch.any(allowed, -2))


def _cleared(x: Array, keys: Array | None) -> Array:
    """x [B, S, K, D] with 0 at the keys that nothing may attend to; `keys` bool [B or 1, H or 1, S or 1], or None."""
    if keys is None:
        return x
    kv_heads = x.shape[2]
    if keys.shape[1] > 1:  # head h reads key/value head h // (H // K)
        keys = torch.any(keys.reshape(keys.shape[0], kv_heads, -1, keys.shape[2]), 2)
    keys = keys.transpose(1, 2)[..., None]
    if _finite_elsewhere(x, keys):
        return x
    return torch.where(keys, x, 0)


def _finite_elsewhere(x: Array, keys: Array) -> bool:
    """Whether what nothing may attend to is finite, where that can be read and costs less than a copy of x."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None or x.is_cuda:
        return False
    outside = x.detach()[~keys[..., 0].expand(x.shape[:3])]
    return bool(torch.isfinite(outside.sum()))


@functools.lru_cache(maxsize=16)
def _allowed_statically(mask: Any, sizes: tuple[int, int, int, int], device: Any) -> Array | None:
    return lower.allowed(mask, *sizes, device=device)


@functools.lru_cache(maxsize=64)
def _reached_statically(mask: Any, sizes: tuple[int, int, int, int]) -> tuple[np.ndarray[Any, Any], ...]:
    return tiles.reached(mask, *sizes)
