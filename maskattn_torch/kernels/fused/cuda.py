"""What SDPA is given on CUDA, so that one of its implementations in linear memory takes the call, with all its digits.

Never run on a GPU: it follows PyTorch's own conditions for each of them, and what they gave where they were measured.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

import torch
from torch import Tensor as Array
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import pad

from maskattn.attention import Call
from maskattn.masks import Causal, Full, Mask
from maskattn_torch._modes import plain
from maskattn_torch._symbolic import known

__all__ = [
    "aligned",
    "allows_all",
    "end_aligned",
    "fits",
    "implementation",
    "is_linear",
    "memory",
    "needs_no_mask",
    "repeated",
]

#: FlashAttention takes no wider heads.
_WIDEST = 256


def implementation(call: Call[Array], added: Array | None) -> AbstractContextManager[object]:
    """A context in which PyTorch chooses among those of its implementations that do a call on CUDA right.

    The fast ones want a bias in the inputs' dtype. float32 is done by the one whose error is that of float32 (measured:
    4e-7; the plain formula follows the process's setting, 4e-4 under "high"), unless that setting is asked for.
    """
    if added is not None and added.dtype.itemsize > call.query.dtype.itemsize:
        return sdpa_kernel(SDPBackend.MATH)
    if call.query.dtype == torch.float32 and call.precision != "default":
        return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION)
    return contextlib.nullcontext()


def is_linear(call: Call[Array]) -> bool:
    """Whether SDPA does the call without all scores, in memory for what it is given alone: mask and bias are dense."""
    if call.query.dtype == torch.float64:
        return False
    narrow = call.query.dtype.itemsize == 2
    dtypes: list[torch.dtype] = []
    if call.bias is not None:
        call.bias.map_data(lambda array: dtypes.append(array.dtype))
    return not (narrow and call.bias is not None and dtypes != [call.query.dtype])


def end_aligned(mask: Mask | None, sizes: tuple[int, int, int, int]) -> CausalBias | None:
    """What SDPA takes for a causal mask that ends where the keys end, of fewer queries than keys; None for others."""
    q_len, kv_len = sizes[2:]
    if not plain() or not isinstance(mask, Causal) or not q_len < kv_len:
        return None
    return causal_lower_right(q_len, kv_len) if mask.offset == kv_len - q_len else None


def allows_all(mask: Mask | None, sizes: tuple[int, int, int, int]) -> bool:
    """Whether this is seen at once to allow everything, as a causal mask does for the last query alone (decoding)."""
    return mask is None or isinstance(mask, Full) or isinstance(mask, Causal) and known(mask.offset >= sizes[3] - 1)


def needs_no_mask(call: Call[Array]) -> bool:
    """Whether SDPA has words of its own for the mask: none, causal, or causal to the end of the keys."""
    mask, (_, _, q_len, kv_len) = call.mask, call.sizes
    if allows_all(mask, call.sizes):
        return True
    if not isinstance(mask, Causal):
        return False
    return known(mask.offset == 0) or plain() and q_len < kv_len and mask.offset == kv_len - q_len


def memory(device: torch.device) -> int:
    """How many bytes a GPU has; 16 GB where nobody can say."""
    if torch.compiler.is_compiling():
        return 16 << 30
    try:
        return torch.cuda.get_device_properties(device).total_memory
    except (AssertionError, RuntimeError):
        return 16 << 30


def repeated(query: Array, key: Array, value: Array, dense: Array | None) -> bool:
    """Whether keys and values are to be repeated for the heads of a group: what takes float32, a mask, values of
    another width, or wide heads, takes no groups.
    """
    masked = dense is not None and not isinstance(dense, CausalBias)
    return (
        masked
        or query.dtype == torch.float32
        or key.shape[-1] != value.shape[-1]
        or known(key.shape[-1] > _WIDEST)
        or not (torch.compiler.is_compiling() or _has_flash(query.device))
    )


def aligned(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    """The three with heads padded by zeros to 16 bytes: others are left to the plain formula."""
    unit = 1 if query.dtype == torch.float64 else 16 // query.dtype.itemsize
    rest = [-x.shape[-1] % unit for x in (query, key, value)]
    if not any(rest):
        return query, key, value
    query, key, value = (pad(x, (0, n)) if n else x for x, n in zip((query, key, value), rest, strict=True))
    return query, key, value


def fits(call: Call[Array]) -> bool:
    """Whether SDPA takes the arrays as they are."""
    query, key, value = call.query, call.key, call.value
    if any([x is not y for x, y in zip(aligned(query, key, value), (query, key, value), strict=True)]):
        return False
    return query.shape[2] == key.shape[2] or not repeated(query, key, value, None)


@functools.cache
def _has_flash(device: torch.device) -> bool:
    """Whether PyTorch's FlashAttention runs there; True where nobody can say, on tensors of no device."""
    try:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    except (AssertionError, RuntimeError):
        return True
