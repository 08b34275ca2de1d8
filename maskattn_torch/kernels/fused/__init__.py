"""The fused kernel: what each platform's vendor gives, called with what the mask says in the vendor's own words.

That is `torch.nn.functional.scaled_dot_product_attention`, with `is_causal` where the mask is exactly that and a dense
mask otherwise. What it cannot express is refused by name. Its errors are the vendor's own.

Two things are made good, since the vendors leave them open: a row that may attend to nothing gives 0, whichever
implementation PyTorch chooses, and keys and values that no query of their batch row may attend to are taken as 0, so
that what is not finite in them reaches nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor as Array
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskattn import schedule
from maskattn.attention import Call
from maskattn.biases import Bias, DenseBias
from maskattn.masks import Causal, Dense, Mask
from maskattn_torch import _autocast, lower
from maskattn_torch._derivatives import beyond_first
from maskattn_torch._modes import plain
from maskattn_torch._operators import operator
from maskattn_torch._symbolic import known
from maskattn_torch.kernels.fused import cuda
from maskattn_torch.kernels.fused.again import twice_differentiable
from maskattn_torch.kernels.fused.finite import finite
from maskattn_torch.kernels.fused.trimmed import apart, run_of, stacked, trimmed
from maskattn_torch.types import Device

#: PyTorch's function, whatever that name is made to mean later: it may be this library's.
sdpa = torch.nn.functional.scaled_dot_product_attention

#: Dense masks of at most so many queries times keys are kept for the next call.
_KEPT = 1 << 20

#: A log-sum-exp of this size is an ulp of 2^-9 off, in float32.
_OVERWHELMING = float(1 << 14)
#: Beside a bias of this size no digit of a score is left.
_LOSING = float(1 << 28)

#: Where the parity suite must not expect what the other kernels promise.
CONVENTIONS = {"lse": "none", "narrow": "rounded inside"}


class Settled(NamedTuple):
    """A mask as SDPA takes it. Axes that the mask does not read have size 1.

    Attributes:
        allowed: bool [B, H, L, S]; None: all may attend to all.
        known: which rows may attend to something, bool [B, H, L], and which keys something may attend to, bool
            [B, H, S], each None for all; None where that was not asked yet.
    """

    allowed: Array | None
    known: tuple[Array | None, Array | None] | None = None

    def rows(self) -> Array | None:
        """Which rows may attend to something; None for all."""
        if self.allowed is None or self.known is not None:
            return None if self.known is None else self.known[0]
        return torch.any(self.allowed, -1)

    def keys(self) -> Array | None:
        """Which keys something may attend to; None for all."""
        if self.allowed is None or self.known is not None:
            return None if self.known is None else self.known[1]
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and self.allowed.device.type == "cpu":
            return _reached(self.allowed)
        return torch.any(self.allowed, -2)


@operator("reached_keys")
def _reached(allowed: Array) -> Array:
    """allowed bool [B, H, L, S] -> bool [B, H, S]. What the compiler makes of it takes half as long as attention."""
    return allowed.view(torch.uint8).amax(-2).view(torch.bool)


@_reached.register_fake
def _(allowed: Array) -> Array:
    return allowed.new_empty((*allowed.shape[:2], allowed.shape[3]))


def attention(call: Call[Array]) -> tuple[Array, None]:
    """The vendor's attention: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], no lse."""
    query, key, value, mask, bias, sizes = call.query, call.key, call.value, call.mask, call.bias, call.sizes
    if bias is None and (run_of(mask) is not None or not query.is_cuda):
        mask, key, value = trimmed(mask, key, value, sizes)
        sizes = (*sizes[:3], key.shape[1])
    causal = bias is None and isinstance(mask, Causal) and known(mask.offset == 0)
    causal = causal and (known(sizes[3] <= sizes[2]) or known(sizes[3] > sizes[2]))
    # every row sees key 0, and none sees what comes after the last query
    if causal and not known(sizes[3] <= sizes[2]):
        key, value = key[:, : sizes[2]], value[:, : sizes[2]]
    ending = cuda.end_aligned(mask, sizes) if query.is_cuda and bias is None else None
    unmasked = query.is_cuda and bias is None and cuda.allows_all(mask, sizes)
    without = causal or mask is None or ending is not None or unmasked
    settled = Settled(None) if without else _settled(mask, sizes, query.device)
    dense, added = settled.allowed if ending is None else ending, None
    if bias is not None:
        settled, added = _with_bias(bias, settled, sizes, query)
        dense = added if settled.allowed is None else torch.where(settled.allowed, added, -math.inf)
    unreached = settled.allowed is not None and (settled.known is None or settled.known[1] is not None)
    later = unreached and _readable(query)  # most keys and values are finite, and then so is what comes out
    if unreached and not later:
        key, value = _cleared(settled, key, value)
    out = _vendor(call, key, value, dense, causal, added)
    if later and not finite(call, out):
        key, value = _cleared(settled, key, value)
        out = _vendor(call, key, value, dense, causal, added)
    if added is not None and dense is not None and _trained(call) and not _readable(added):
        out = _outweighed(out, dense)
    # on the CPU every implementation of PyTorch's gives an empty row 0 (tested)
    if settled.allowed is not None and (call.empty_rows == "nan" or out.device.type != "cpu"):
        rows = settled.rows()
        if rows is not None:
            empty = (~rows).transpose(1, 2)[..., None]
            out = torch.where(empty, math.nan if call.empty_rows == "nan" else 0.0, out)
    return out, None


def _vendor(
    call: Call[Array], key: Array, value: Array, dense: Array | None, causal: bool, added: Array | None
) -> Array:
    """SDPA of the call's queries with these keys and values: [B, L, H, Dv]."""
    query, width = call.query, value.shape[-1]
    grouped = not known(query.shape[2] == key.shape[2])
    if query.is_cuda:
        if grouped and cuda.repeated(query, key, value, dense):
            key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], 2) for x in (key, value))
            grouped = False
        query, key, value = cuda.aligned(query, key, value)
    q, k = query.transpose(1, 2), key.transpose(1, 2)
    if grouped and not query.is_cuda and not causal:
        q = stacked(q, k, dense)
        grouped = not known(q.shape[1] == k.shape[1])
    heads_first = q, k, value.transpose(1, 2)
    try:
        if added is None and not query.is_cuda and not _autocast.is_on(query.device):
            out = sdpa(*heads_first, dense, 0.0, causal, scale=call.scale, enable_gqa=grouped)
        else:  # autocast would compute float32 inputs in half precision
            with _autocast.off(query.device), _implementation(call, added):
                out = sdpa(*heads_first, dense, 0.0, causal, scale=call.scale, enable_gqa=grouped)
    except NotImplementedError as error:
        if not beyond_first():
            raise
        said = 'kernel="fused" has no forward mode here; kernel="reference" has'
        raise NotImplementedError(f"{said} ({error})") from error
    if out.requires_grad and not torch.compiler.is_compiling():
        twice_differentiable(out)
    return out.transpose(1, 2)[..., :width] if query.is_cuda else apart(out, query.shape[2]).transpose(1, 2)


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
    query, key, value = call.query.shape, call.key.shape, call.value.shape
    if call.query.is_cuda and any(known(size == 0) for size in (*query, *key, *value)):
        shapes = f"query {tuple(query)}, key {tuple(key)} and value {tuple(value)}"
        reasons.append(f"on a GPU {name} takes no empty tensors, got {shapes}")
    if call.sinks is not None:
        reasons.append(f"{name} has no sinks")
    if call.softcap is not None:
        reasons.append(f"{name} has no softcap")
    return reasons


def _with_bias(bias: Bias, settled: Settled, sizes: tuple[int, int, int, int], query: Array) -> tuple[Settled, Array]:
    """The mask with what the bias forbids by -inf, and the bias as SDPA takes it: with 16-bit inputs, in float32."""
    added = lower.bias(bias, *sizes, device=query.device)
    assert added is not None
    if isinstance(bias, DenseBias):  # which may forbid
        open_ = torch.ne(added, -math.inf)
        settled = Settled(open_ if settled.allowed is None else open_ & settled.allowed)
    narrow = query.dtype.itemsize == 2 and added.dtype != query.dtype
    return settled, added.to(torch.float32 if narrow else query.dtype)


def _implementation(call: Call[Array], added: Array | None) -> AbstractContextManager[object]:
    """A context in which PyTorch chooses among those of its implementations that do this call right.

    Their derivatives go through the log-sum-exp of a row, which cannot hold both a bias of -1e9 for all keys (a row
    that is padding only) and how many keys there are.
    """
    if call.query.is_cuda:
        return cuda.implementation(call, added)
    plain = added is not None and _trained(call) and _readable(added) and _overwhelms(added)
    return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()


def _trained(call: Call[Array]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.key, call.value))


def _readable(x: Array) -> bool:
    return plain() and x.device.type == "cpu"


def _overwhelms(added: Array) -> bool:
    """Whether a row's largest bias is so large that its log-sum-exp is far off."""
    if 0 in added.shape:
        return False
    highest = torch.amax(added.detach(), -1).abs_()
    return bool(((highest > _OVERWHELMING) & (highest < math.inf)).any())


def _outweighed(out: Array, added: Array) -> Array:
    """`out` [B, L, H, Dv], whose cotangent is divided by what the weights of each row, made from its log-sum-exp, add
    up to: where the bias is so large that the scores are lost in it, and this follows from the bias alone.
    """
    added = added.detach()
    highest = torch.amax(added, -1)
    lost = (highest.abs() > _LOSING) & (highest.abs() < math.inf)
    highest = torch.where(lost, highest, 0)
    exponent = torch.logsumexp(torch.where(lost[..., None], added - highest[..., None], 0), -1)
    total = torch.where(lost, torch.exp(exponent - ((highest + exponent) - highest)), 1)
    held = out.detach()
    return held + ((out - held) / total.transpose(1, 2)[..., None]).to(out.dtype)


def _settled(mask: Mask, sizes: tuple[int, int, int, int], device: Device) -> Settled:
    """The mask, settled once where it is small, has no data, and this is plain eager code."""
    if isinstance(mask, Dense):
        return Settled(mask.keep if mask.keep.ndim == 4 else mask.keep.reshape(mask.shape))
    if plain() and sizes[2] * sizes[3] <= _KEPT and not mask.flatten()[0]:
        return _settled_once(mask, sizes, device)
    return Settled(lower.allowed(mask, *sizes, device=device))


@functools.lru_cache(maxsize=16)
def _settled_once(mask: Mask, sizes: tuple[int, int, int, int], device: Device) -> Settled:
    with torch.inference_mode(False):  # training may be next
        found = (None if x.all() else torch.as_tensor(x) for x in schedule.reached(mask, *sizes))
        rows, keys = (None if x is None else x.to(device, non_blocking=True) for x in found)
        return Settled(lower.allowed(mask, *sizes, device=device), (rows, keys))


def _cleared(settled: Settled, *arrays: Array) -> list[Array]:
    """Each x [B, S, K, D] with 0 at the keys that nothing may attend to."""
    keys = settled.keys()
    if keys is None:
        return list(arrays)
    kv_heads = arrays[0].shape[2]
    if keys.shape[1] > 1:  # head h reads key/value head h // (H // K)
        keys = torch.any(keys.reshape(keys.shape[0], kv_heads, -1, keys.shape[2]), 2)
    keys = keys.transpose(1, 2)[..., None]
    return [torch.where(keys, x, 0) for x in arrays]
