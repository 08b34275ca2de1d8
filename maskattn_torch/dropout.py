"""Dropout from a key: which weights are kept, drawn for any part of the score matrix by itself.

The draw is that of `jax.random.bernoulli(key, float32(1 - rate), (B or 1, H or 1, L, S))`: element i of that array, in
row-major order, depends on the key and on i only, so a kernel's tile draws its own elements and stores no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Integer, UInt32
from torch.utils import _pytree

from maskattn.attention import Dropout
from maskattn.numerics.rng import bernoulli_limit
from maskattn_torch import _devices, rng
from maskattn_torch._operators import operator
from maskattn_torch.rng import Schedule, _piece, _schedule, _threefry2x32
from maskattn_torch.types import Array, RandomKey

Index: TypeAlias = int | Integer[Array, "..."]

__all__ = ["Dropout", "dense", "drop", "keep", "module_keys"]


_pytree.register_pytree_node(
    Dropout,
    lambda x: ([x.words], (x.rate, x.shared, x.within)),
    lambda leaves, static: Dropout(static[0], next(iter(leaves)), *static[1:]),
)


def keep(
    dropout: Dropout[Array], b: Index, h: Index, q: Index, k: Index, sizes: tuple[int, int, int, int]
) -> Bool[Array, "*shape"]:
    """Which weights are kept, True = kept: bool of the shape that the indices broadcast to.

    Args:
        dropout: the rate and the key.
        b, h, q, k: indices in the score matrix: integer tensors that broadcast, or ints.
        sizes: of the score matrix, (B, H, L, S); `dropout.within` says of what it is a part.

    Raises:
        ValueError: the rate is not in [0, 1].
    """
    batch, heads, q_len, kv_len = sizes
    device = dropout.words.device
    b, h, q, k = (torch.as_tensor(index, device=device).to(torch.int64) for index in (b, h, q, k))
    shape = torch.broadcast_shapes(b.shape, h.shape, q.shape, k.shape)
    if dropout.within is not None:
        row, head, query, batch, heads, q_len = dropout.within
        b, h, q = b + row, h + head, q + query
    b, batch = (b.new_zeros(()), 1) if "batch" in dropout.shared else (b, batch)
    h, heads = (h.new_zeros(()), 1) if "heads" in dropout.shared else (h, heads)
    rows = ((b * heads + h) * q_len + q) * kv_len
    wide = batch * heads * q_len * kv_len > 2**32
    return _keep(dropout.words, rows, k, dropout.rate, wide).expand(shape)


def dense(dropout: Dropout[Array], sizes: tuple[int, int, int, int]) -> Bool[Array, "#B #H L S"]:
    """`keep` of the whole score matrix, True = kept: bool [B or 1, H or 1, L, S], 1 where the axis is shared.

    Arguments as in `keep`.
    """
    drawn = [1 if axis in dropout.shared else n for axis, n in zip(("batch", "heads", "", ""), sizes, strict=True)]
    device = dropout.words.device
    b, h, q, k = (torch.arange(n, device=device).reshape(-1, *[1] * (3 - axis)) for axis, n in enumerate(drawn))
    return keep(dropout, b, h, q, k, sizes)


def module_keys(key: RandomKey) -> tuple[UInt32[Array, " 2"], UInt32[Array, " 2"]]:
    """The keys of a module's two draws, from the one that it is given: `fold_in(key, 0)` for the attention weights and
    `fold_in(key, 1)` for the output. Errors as in `rng.words`.
    """
    return rng.fold_in(key, 0), rng.fold_in(key, 1)


def drop(
    x: Float[Array, "*shape"],
    rate: float,
    key: RandomKey,
    by: Callable[[Array, Array, float], Array] | None = None,
) -> Float[Array, "*shape"]:
    """Dropout of a tensor: x * keep / (1 - rate), with keep = bernoulli(key, float32(1 - rate), x.shape).

    Args:
        x: of any float dtype; what is dropped is exactly 0, whatever it was.
        rate: the probability of being dropped, in (0, 1).
        key: a seed or two uint32 words.
        by: computes it, given x, keep and the rate, where a kernel brings its own.

    Errors as in `maskattn.rng.bernoulli`.
    """
    words = rng.words(key, x.device)

    def dropped(x: Array, first: Sequence[int], whole: Sequence[int]) -> Array:
        kept = _part(words, rate, x.shape, first, whole)
        if by is not None:
            return by(x, kept, rate)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.where(kept, wide / (1.0 - rate), 0).to(x.dtype)

    return _devices.by_parts(x, dropped) if _devices.is_spread(x) else dropped(x, (0,) * x.ndim, x.shape)


def _part(
    words: Array, rate: float, shape: Sequence[int], first: Sequence[int], whole: Sequence[int]
) -> Bool[Array, "*shape"]:
    """bernoulli(words, 1 - rate, whole)[first[0] : first[0] + shape[0], ...]: only what is of this part is drawn."""
    if tuple(shape) == tuple(whole):
        return rng.bernoulli(words, 1.0 - rate, shape)
    rows = torch.zeros((), dtype=torch.int64, device=words.device)
    for low, size, length in zip(first[:-1], shape[:-1], whole[:-1], strict=True):
        rows = rows.unsqueeze(-1) * length + torch.arange(low, low + size, device=words.device)
    columns = torch.arange(first[-1], first[-1] + shape[-1], device=words.device)
    return _keep(words, rows.unsqueeze(-1) * whole[-1], columns, rate, math.prod(whole) > 2**32)


@operator("dropout_keep")
def _keep(key: Array, rows: Array, columns: Array, rate: float, wide: bool) -> Array:
    """Whether element rows + columns (int64, broadcasting) is kept; `wide`: whether any is beyond 2**32."""
    shape = torch.broadcast_shapes(rows.shape, columns.shape)
    out = torch.empty(shape, dtype=torch.bool, device=key.device)
    if out.numel() == 0:
        return out
    # [R, 1] + [1, C] where only the last axis is the columns', as in a tile; else [N, 1] + [1, 1]
    if columns.numel() != columns.shape[-1:].numel() or rows.shape[-1:].numel() != 1:
        rows, columns = rows + columns, columns.new_zeros(1)
    rows, columns = rows.reshape(-1, 1), columns.reshape(1, -1)
    flat, limit, schedule = out.reshape(rows.numel(), columns.numel()), bernoulli_limit(1.0 - rate), _schedule(key)
    step = max(1, _piece(key.device) // columns.numel())
    for low in range(0, rows.numel(), step):
        _keep_rows(flat[low : low + step], rows[low : low + step], columns, schedule, limit, wide)
    return out


def _keep_rows(out: Array, rows: Array, columns: Array, schedule: Schedule, limit: int, wide: bool) -> None:
    if wide:
        index = rows + columns
        x0, x1 = (index >> 32).to(torch.int32), index.to(torch.int32)
    else:
        x1 = rows.to(torch.int32) + columns.to(torch.int32)  # keeps the low words, also of what int32 cannot hold
        x0 = torch.zeros_like(x1)
    scratch = torch.empty_like(x1)
    _threefry2x32(schedule, x0, x1, scratch)
    torch.bitwise_xor(x0, x1, out=scratch)
    scratch.bitwise_right_shift_(9).bitwise_and_((1 << 23) - 1)
    torch.lt(scratch, limit, out=out)


@_keep.register_fake
def _(key: Array, rows: Array, columns: Array, rate: float, wide: bool) -> Array:
    return torch.empty(torch.broadcast_shapes(rows.shape, columns.shape), dtype=torch.bool, device=key.device)
