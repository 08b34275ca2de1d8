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
from typing import Any, TypeAlias

import torch
from torch import Tensor as Array
from torch.nn.functional import scaled_dot_product_attention

from maskattn import schedule
from maskattn._fields import peek
from maskattn.attention import Call
from maskattn.biases import DenseBias
from maskattn.masks import Causal, KeyPadding, Mask
from maskattn_torch import _autocast, lower
from maskattn_torch._derivatives import beyond_first
from maskattn_torch._symbolic import known
from maskattn_torch.kernels.fused.again import twice_differentiable
from maskattn_torch.types import Device

#: Dense masks of at most so many queries times keys are kept for the next call.
_KEPT = 1 << 20

#: Where the parity suite must not expect what the other kernels promise.
CONVENTIONS = {"lse": "none", "narrow": "rounded inside"}

#: The dense mask, which rows may attend to something, and which keys something may attend to; None: all.
Settled: TypeAlias = tuple[Array | None, Array | None, Array | None]


def attention(call: Call[Array]) -> tuple[Array, None]:
    """The vendor's attention: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], no lse."""
    query, key, value, mask, bias, sizes = call.query, call.key, call.value, call.mask, call.bias, call.sizes
    if bias is None and isinstance(mask, KeyPadding):
        mask, key, value = _trimmed(mask, key, value)
        sizes = (*sizes[:3], key.shape[1])
    causal = bias is None and isinstance(mask, Causal) and known(mask.offset == 0)
    causal = causal and (known(sizes[3] <= sizes[2]) or known(sizes[3] > sizes[2]))
    if causal:  # every row sees key 0, and none sees what comes after the last query
        key, value = key[:, : sizes[2]], value[:, : sizes[2]]
    allowed, rows, keys = _settled(None if causal else mask, sizes, query.device)
    added = lower.bias(bias, *sizes, device=query.device)
    if isinstance(bias, DenseBias):  # which may forbid by -inf
        assert added is not None
        finite = torch.ne(added, -math.inf)
        allowed = finite if allowed is None else finite & allowed
        rows, keys = torch.any(allowed, -1), torch.any(allowed, -2)
    dense = allowed
    if added is not None:
        dense = added.to(query.dtype)
        if allowed is not None:
            dense = torch.where(allowed, dense, -math.inf)
    arrays = (query.transpose(1, 2), _cleared(key, keys).transpose(1, 2), _cleared(value, keys).transpose(1, 2))
    grouped = not known(query.shape[2] == key.shape[2])
    out = _sdpa(*arrays, attn_mask=dense, is_causal=causal, scale=call.scale, enable_gqa=grouped).transpose(1, 2)
    # on the CPU every implementation of PyTorch's gives an empty row 0 (tested)
    if rows is not None and (call.empty_rows == "nan" or out.device.type != "cpu"):
        empty = (~rows).transpose(1, 2)[..., None]
        out = torch.where(empty, math.nan if call.empty_rows == "nan" else 0.0, out)
    return out, None


def unsupported(call: Call[Array]) -> list[str]:
    """Everything that the vendor's function on this platform cannot express; [] where it runs the call."""
    reasons = []
    name = "scaled_dot_product_attention"
    if call.dropout_rate:
        reasons.append(f"{name} has no dropout from a key")
    if call.return_lse:
        reasons.append(f"return_lse: {name} gives no log-sum-exp")
    if call.empty_rows == "mean":
        reasons.append('empty_rows="mean": only "reference" and "exact" average all values')
    if call.query.is_cuda and call.precision != "default":
        reasons.append(f"precision={call.precision!r}: on a GPU {name} has the process's setting, which is 'default'")
    query, key, value = call.query.shape, call.key.shape, call.value.shape
    if call.query.is_cuda and any(known(size == 0) for size in (*query, *key, *value)):
        shapes = f"query {tuple(query)}, key {tuple(key)} and value {tuple(value)}"
        reasons.append(f"on a GPU {name} takes no empty tensors, got {shapes}")
    if call.sinks is not None:
        reasons.append(f"{name} has no sinks")
    if call.softcap is not None:
        reasons.append(f"{name} has no softcap")
    return reasons


def _sdpa(*arrays: Array, **options: Any) -> Array:
    try:
        with _autocast.off(arrays[0].device):  # which would compute float32 inputs in half precision
            out = scaled_dot_product_attention(*arrays, **options)
    except NotImplementedError as error:
        if not beyond_first():
            raise
        raise NotImplementedError(
            f'kernel="fused" has no forward mode here; kernel="reference" has ({error})'
        ) from error
    if out.requires_grad and not torch.compiler.is_compiling():
        twice_differentiable(out)
    return out


def _settled(mask: Mask | None, sizes: tuple[int, int, int, int], device: Device) -> Settled:
    """The dense mask (None: all may attend), which rows may attend to something, bool [B, H, L], and which keys
    something may attend to, bool [B, H, S] (None: all). Axes that the mask does not read have size 1.

    In plain eager code a small mask without data is settled once.
    """
    if mask is None:
        return None, None, None
    if _plain_eager() and not mask.flatten()[0] and sizes[2] * sizes[3] <= _KEPT:
        return _settled_once(mask, sizes, device)
    allowed = lower.allowed(mask, *sizes, device=device)
    return (None, None, None) if allowed is None else (allowed, torch.any(allowed, -1), torch.any(allowed, -2))


@functools.lru_cache(maxsize=16)
def _settled_once(mask: Mask, sizes: tuple[int, int, int, int], device: Device) -> Settled:
    with torch.inference_mode(False):  # training may be next
        reached = (None if x.all() else torch.as_tensor(x, device=device) for x in schedule.reached(mask, *sizes))
        return lower.allowed(mask, *sizes, device=device), next(reached), next(reached)


def _plain_eager() -> bool:
    """Whether tensors are what they seem: none is traced, fake or of a transform, nor would one made now be."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _trimmed(mask: KeyPadding, key: Array, value: Array) -> tuple[KeyPadding | None, Array, Array]:
    """The mask, keys and values without what lies beyond every length, where lengths can be read at no cost: the part
    of a cache that is not in use is not read. No mask at all where one length serves all.
    """
    lengths = mask.lengths
    if torch.compiler.is_compiling() or not isinstance(lengths, torch.Tensor) or lengths.device.type != "cpu":
        return mask, key, value
    numbers = peek(lengths)
    if numbers is None or not numbers.size or numbers.min() < 1:
        return mask, key, value
    longest = int(numbers.max())
    return None if numbers.min() == longest else mask, key[:, :longest], value[:, :longest]


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
    if not _plain_eager() or x.is_cuda or x.is_meta:
        return False
    outside = x.detach()[~keys[..., 0].expand(x.shape[:3])]
    return bool(torch.isfinite(outside.sum()))
