"""EMPTY, MIXED or FULL of every tile of a call, on the host where the mask holds no data, else in array operations."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from maskattn import schedule
from maskattn._arithmetic import Bounds
from maskattn.masks import Dense, Full, Mask, Segments, fold
from maskattn.typing import NumPyArray
from maskattn_jax._partition import Origin
from maskattn_jax.kernels.blockwise.own import in_place
from maskattn_jax.kernels.blockwise.tiling import CallTiling
from maskattn_jax.types import Given


def states_of(mask: Mask | None, tiling: CallTiling, origin: Origin, q: int, k: int) -> Given:
    """int8 [B or 1, H or 1, query tiles, key tiles], of tiles of q queries by k keys: NumPy where it is known.

    Tiles are those of this device's queries: in NumPy in all batch rows and heads, else in this device's.
    """
    tiles = -(-tiling.q_len // q), -(-tiling.kv_len // k)
    if mask is None or isinstance(mask, Full):
        return np.full((1, 1, *tiles), schedule.FULL, np.int8)
    if not mask.flatten()[0] or not _leaves(mask):
        if tiling.shards == 1:
            return _known(mask, tiling.whole, q, k)
    return _traced(mask, tiling, origin, q, k)


def _leaves(mask: Mask) -> bool:
    """Whether the mask holds data."""
    return bool(mask.data_fields()) or any(_leaves(child) for child in mask.children())


@functools.lru_cache(maxsize=64)
def _known(mask: Mask, whole: tuple[int, int, int, int], q: int, k: int) -> NumPyArray:
    return schedule.Schedule.of(mask, *whole, q, k).states()


def _traced(mask: Mask, tiling: CallTiling, origin: Origin, q: int, k: int) -> Array:
    batch = tiling.batch if "b" in mask.depends else 1
    heads = tiling.heads if "h" in mask.depends else 1
    shape = (batch, heads, -(-tiling.q_len // q), -(-tiling.kv_len // k))
    # in NumPy: what of a tile does not depend on the data is known while tracing
    b, h, i, j = (x.astype(np.int32) for x in np.ogrid[tuple(slice(n) for n in shape)])
    q_lo, k_lo = i * q, j * k
    q_hi, k_hi = np.minimum(q_lo + q, tiling.q_len) - 1, np.minimum(k_lo + k, tiling.kv_len) - 1
    row, head, query = (first if part else 0 for first, part in zip(origin, tiling.divided, strict=True))

    def bounds(part: Mask) -> Bounds:
        if isinstance(part, (Segments, Dense)) and not tiling.divided[1] and not tiling.divided[2]:
            rows = part.sizes().get("batch", 1)
            if rows in (1, tiling.batch):
                return _of_segments(part, q, k) if isinstance(part, Segments) else _of_dense(part, q, k)
        moved = in_place(part, tiling, origin)
        return Bounds(*moved.tile(b + row, h + head, q_lo + query, q_hi + query, k_lo, k_hi))

    some, every = fold(mask, bounds)
    states = jnp.where(some, jnp.where(every, schedule.FULL, schedule.MIXED), schedule.EMPTY).astype(jnp.int8)
    return jnp.broadcast_to(states, shape)


def _of_segments(mask: Segments, q: int, k: int) -> Bounds:
    """`Segments.tile` on a grid of tiles: least and most of each block of ids, one reduction a side."""
    k_ids = mask.q_ids if mask.k_ids is None else mask.k_ids
    sides = []
    for ids, block in ((jnp.asarray(mask.q_ids), q), (jnp.asarray(k_ids), k)):
        blocks = _blocks(ids, 1, block, -1)
        real = blocks >= 0
        exists = _blocks(jnp.ones((1, ids.shape[1]), bool), 1, block, False)
        top = jnp.iinfo(ids.dtype).max
        least = jnp.min(jnp.where(real, blocks, top), axis=2)
        sides.append((least, jnp.max(blocks, axis=2), jnp.all(real | ~exists, axis=2)))
    q_least, q_most, q_all = (x[:, None, :, None] for x in sides[0])
    k_least, k_most, k_all = (x[:, None, None, :] for x in sides[1])
    some = (q_most >= 0) & (k_most >= 0) & (q_least <= k_most) & (k_least <= q_most)
    one = (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
    return Bounds(some, some & one & q_all & k_all)


def _of_dense(mask: Dense, q: int, k: int) -> Bounds:
    """`Dense.tile` on a grid of tiles, without a table of counts: that would have an int32 for each entry."""
    keep = jnp.asarray(mask.keep).reshape(mask.shape)
    some, every = keep, keep
    for axis, block in ((2, q), (3, k)):
        if keep.shape[axis] > 1:
            some = jnp.any(_blocks(some, axis, block, False), axis=axis + 1)
            every = jnp.all(_blocks(every, axis, block, True), axis=axis + 1)
    return Bounds(some, every)


def _blocks(x: Array, axis: int, block: int, beyond: Any) -> Array:
    """An axis as [blocks, block], what lies beyond its end being `beyond`."""
    more = -x.shape[axis] % block
    padding = [(0, more if n == axis else 0, 0) for n in range(x.ndim)]
    x = lax.pad(x, jnp.asarray(beyond, x.dtype), padding)
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def of_device(x: Given, tiling: CallTiling, origin: Origin) -> Given:
    """Of an array [B or 1, H or 1, ...] of the whole call, this device's batch rows and heads."""
    for axis, (start, mine) in enumerate(((origin.row, tiling.batch), (origin.head, tiling.heads))):
        if x.shape[axis] == tiling.whole[axis] != mine:
            x = lax.dynamic_slice_in_dim(jnp.asarray(x), start, mine, axis)
    return x
