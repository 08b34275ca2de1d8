"""What need not be read: keys beyond what any query may attend to, and keys once for each query head of a group."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor as Array

from maskattn.masks import And, Dense, KeyPadding, Mask, Not
from maskattn.typing import NumPyArray, Traced
from maskattn_torch._hosted import host_of

__all__ = ["apart", "bounds_of", "padded", "run_of", "stacked", "trimmed"]

#: Up to so many queries it is worth looking where their keys begin and end.
_FEW_QUERIES = 64
#: From so many keys on.
_MANY_KEYS = 64


def trimmed(
    mask: Mask | None, key: Array, value: Array, sizes: tuple[int, int, int, int]
) -> tuple[Mask | None, Array, Array]:
    """The mask, keys and values [B, S, K, D] without what no query may attend to at either end, where that can be read
    at no cost: the part of a cache that is not in use is not read. No mask at all where one run of keys serves all.
    """
    run = run_of(mask)
    if run is not None:
        hosts = [None if x is None else host_of(x) for x in run]
        if hosts[0] is None or hosts[1] is None and run[1] is not None or key.is_cuda and run[1] is not None:
            return mask, key, value
        found = _ends(hosts[0].tolist(), [0] if hosts[1] is None else hosts[1].tolist(), key.shape[1])
        if found is None:
            return mask, key, value
        low, high, alike = found
        key, value = key[:, low:high], value[:, low:high]
        return (None if alike else mask if run[1] is None else Dense(_kept(run, low, high))), key, value
    _, _, q_len, kv_len = sizes
    if mask is None or not isinstance(kv_len, int) or kv_len < _MANY_KEYS or not 0 < q_len <= _FEW_QUERIES:
        return mask, key, value
    bounds = _bounds(mask, sizes)
    if bounds is None:
        return mask, key, value
    lows, highs = bounds
    first, end = max(0, int(lows.min())), min(kv_len, int(highs.max()))
    if end <= first or (first, end) == (0, kv_len):
        return mask, key, value
    key, value = key[:, first:end], value[:, first:end]
    if int(lows.max()) <= first and int(highs.min()) >= end:
        return None, key, value
    place = np.arange(first, end)
    keep = (place >= lows[..., None]) & (place < highs[..., None])
    return Dense(torch.as_tensor(keep)[:, None]), key, value


def run_of(mask: object) -> tuple[Array, Array | None] | None:
    """Of a mask that is one run of keys in each row, whatever the query: where the runs end, and, but for None, begin.
    None of any other."""
    if type(mask) is KeyPadding:
        return mask.lengths, None
    if type(mask) is And and len(mask.parts) == 2:
        ends, begins = mask.parts
        if type(ends) is KeyPadding and type(begins) is Not and type(begins.part) is KeyPadding:
            return ends.lengths, begins.part.lengths
    return None


def padded(
    ends: Array, begins: Array | None, key: Array, value: Array, axis: int
) -> tuple[Array, Array, Array | None] | None:
    """The keys and values from the first to the last that a row has, along an axis, and, where rows differ, which of
    them each row has, bool [B, 1, 1, S]. None where a row has no key, or more than there are.
    """
    found = bounds_of(ends, begins, key.shape[axis])
    if found is None:
        return None
    low, high, alike = found
    key, value = key.narrow(axis, low, high - low), value.narrow(axis, low, high - low)
    return key, value, None if alike else _kept((ends, begins), low, high)


def bounds_of(ends: Array, begins: Array | None, most: int) -> tuple[int, int, bool] | None:
    """Of runs of keys on the CPU: the first key that a row has, one more than the last, and whether all rows have
    these; None where a row has no key, or more than `most`."""
    lasts = ends.tolist()
    if begins is None and len(lasts) == 1:
        return (0, lasts[0], True) if 0 < lasts[0] <= most else None
    return _ends(lasts, [0] if begins is None else begins.tolist(), most)


def _ends(lasts: list[int], firsts: list[int], most: int) -> tuple[int, int, bool] | None:
    """The first key that a row has, one more than the last, and whether all rows have these; None where a row has no
    key, or more than `most`."""
    low, high = min(firsts, default=0), max(lasts, default=0)
    if min(lasts, default=0) <= max(firsts, default=0) or low < 0 or high > most:
        return None
    return low, high, lasts.count(high) == len(lasts) and firsts.count(low) == len(firsts)


def _kept(run: tuple[Array, Array | None], low: int, high: int) -> Array:
    """Which of the keys low..high - 1 each row has: bool [B, 1, 1, high - low]."""
    ends, begins = run
    place = torch.arange(low, high)
    keep = place < ends[:, None]
    return (keep if begins is None else keep & (place >= begins[:, None]))[:, None, None]


def _bounds(mask: Mask, sizes: tuple[int, int, int, int]) -> tuple[NumPyArray, NumPyArray] | None:
    """The first key of each query, and one more than the last, int [B or 1, L]; None where a mask is not such a run in
    every head, or cannot be read."""
    if "h" in mask.depends or "q" not in mask.depends and "k" not in mask.depends:
        return None
    unread: list[Array] = []

    def read(array: Array) -> NumPyArray | None:
        found = host_of(array)
        if found is None:
            unread.append(array)
        return None if found is None else np.asarray(found)

    known = mask.map_data(read)
    if unread:
        return None
    batch, _, q_len, kv_len = sizes
    rows = known.rows(np.arange(batch if "b" in mask.depends else 1)[:, None], 0, np.arange(q_len)[None], 0)
    if rows is None or rows.q_tag is not None:
        return None

    def filled(bound: Traced, none: int) -> NumPyArray:
        return np.broadcast_to(np.asarray(none if bound is None else bound), (1, 1)) if np.ndim(bound) == 0 else bound

    shape = np.broadcast_shapes(np.shape(filled(rows.low, 0)), np.shape(filled(rows.high, kv_len)))
    return np.broadcast_to(filled(rows.low, 0), shape), np.broadcast_to(filled(rows.high, kv_len), shape)


def stacked(query: Array, key: Array, keep: Array | None) -> Array:
    """One token's query [B, H, 1, D] as queries [B, K, H // K, D] of each key head: SDPA would repeat the keys.

    As it is where heads are not grouped, there are more tokens, or the mask differs between heads.
    """
    batch, heads, q_len, width = query.shape
    if type(q_len) is not int or q_len != 1 or heads == key.shape[1] or keep is not None and keep.shape[1] != 1:
        return query
    return query.reshape(batch, key.shape[1], heads // key.shape[1], width)


def apart(out: Array, heads: int) -> Array:
    """What attention gave of `stacked` queries, [B, H, 1, Dv]."""
    return out if out.shape[1] == heads else out.reshape(out.shape[0], heads, 1, out.shape[3])
