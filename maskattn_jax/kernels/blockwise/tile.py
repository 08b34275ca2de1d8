"""One tile of scores, as the forward and the backward pass of the blockwise kernel both compute it."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from maskattn._pairs import restrict
from maskattn.biases import Bias, DenseBias
from maskattn.masks import Dense, Mask, fold
from maskattn_jax.dropout import keep
from maskattn_jax.kernels.blockwise.arrays import Place, slice_at
from maskattn_jax.kernels.blockwise.own import in_place, own, places_in
from maskattn_jax.kernels.blockwise.tiled_call import TiledCall


class Scores(NamedTuple):
    """A tile's logits after softcap, bias and mask, [rows, columns, group, q_block, width], and what made them."""

    logits: Array  # -inf where mask or bias forbid
    slope: Array | None  # tanh(x / softcap) of the logits x before softcap


def scores(tiled: TiledCall, place: Place, query: Array, key: Array) -> Scores:
    """The logits of a tile: query (already scaled) [rows, columns, group * q_block, D], key [rows, columns, width, D].

    A query beyond the lengths may attend to nothing, or to all that a row of tiles visits.
    """
    options, conditions, width = tiled.options, tiled.conditions, key.shape[-2]
    logits = jnp.einsum("...qd,...kd->...qk", query, key, precision=options.precision)
    logits = logits.reshape(*tiled.tiling.tile, width)
    slope = None
    if options.softcap is not None:
        slope = jnp.tanh(logits / options.softcap)
        logits = options.softcap * slope
    if conditions.bias is not None:
        added = bias_values(tiled, conditions.bias, place, width).astype(query.dtype)
        forbidden = added == -jnp.inf
        if tiled.tiling.shards > 1 and tiled.tiling.padded[0] != tiled.tiling.q_len:  # the next device's queries follow
            forbidden = forbidden | (place.query + jnp.arange(tiled.tiling.q_block)[:, None] >= tiled.tiling.q_len)
        logits = jnp.where(forbidden, -jnp.inf, logits + added)
    if conditions.steps.masked:
        logits = jnp.where(_allowed(tiled, place, width), logits, -jnp.inf)
    return Scores(logits, slope)


def cleared(tiled: TiledCall, keys: Array, weights: Array, nothing: float) -> Array:
    """The keys or values of a tile, [rows, columns, width, D], 0 where all weights [rows, columns, group, q_block,
    width] of one are `nothing`: 0 times what is not finite would be NaN.
    """
    if not tiled.conditions.steps.masked and tiled.conditions.bias is None:
        return keys

    def clear(keys: Array) -> Array:
        return jnp.where(jnp.any(weights != nothing, axis=(-3, -2))[..., None], keys, 0)

    return clear(keys) if tiled.dirty is None else lax.cond(tiled.dirty, clear, lambda keys: keys, keys)


def kept(tiled: TiledCall, place: Place, width: int) -> Array | None:
    """What the tile's softmax weights are multiplied by, 0 or 1 / (1 - rate); None without dropout."""
    dropout = tiled.conditions.dropout
    if dropout is None:
        return None
    drawn = keep(dropout, *_indices(tiled, place, width), tiled.tiling.whole)
    # the root is that of 0 or 1: XLA takes it for dear, and does not draw again for each of its readers
    return lax.sqrt(drawn.astype(tiled.dtype)) * (1.0 / (1.0 - dropout.rate))


def bias_values(tiled: TiledCall, bias: Bias, place: Place, width: int) -> Array:
    """A bias, a DenseBias padded, on a tile: rank 5, broadcastable to [rows, columns, group, q_block, width]."""
    if isinstance(bias, DenseBias):
        return _slice(tiled, bias.array, place, width)
    places = places_in(bias, tiled.tiling, tiled.conditions.origin, _indices(tiled, place, width))
    return _rank_5(jnp.asarray(bias.values(*restrict(bias, *places))))


def window(tiled: TiledCall, shape: tuple[int, ...], place: Place, width: int) -> tuple[list[Array | int], list[int]]:
    """Where the slice of an array [B or 1, H or 1, L or 1, S or 1], padded, that a tile reads starts, and its sizes."""
    rows, columns, group, q_block = tiled.tiling.tile
    sizes = (rows, columns * group, q_block, width)
    here = (place.row, place.column * group, place.query)
    mine = own(shape, tiled.tiling, tiled.tiling.padded[0])
    starts = list(_starts_in_whole(tiled, place))
    starts[:3] = [part if is_own else start for start, part, is_own in zip(starts, here, mine, strict=False)]
    read = [(start, size) if n != 1 else (0, 1) for start, size, n in zip(starts, sizes, shape, strict=True)]
    return [start for start, _ in read], [size for _, size in read]


def _slice(tiled: TiledCall, array: Array, place: Place, width: int) -> Array:
    """A padded array [B or 1, H or 1, L or 1, S or 1] on a tile: [rows, columns, group, q_block, width], or 1."""
    starts, sizes = window(tiled, array.shape, place, width)
    part = slice_at(array, starts, sizes)
    heads = (1, 1) if sizes[1] == 1 else tiled.tiling.tile[1:3]
    return part.reshape(sizes[0], *heads, *sizes[2:])


def _indices(tiled: TiledCall, place: Place, width: int) -> tuple[Array, Array, Array, Array]:
    """(b, h, q, k) of a tile's pairs in the whole arrays, broadcasting to [rows, columns, group, q_block, width]."""
    rows, columns, group, q_block = tiled.tiling.tile
    b, h, q, k = _starts_in_whole(tiled, place)
    b = b + jnp.arange(rows, dtype=jnp.int32)[:, None, None, None, None]
    h = h + jnp.arange(columns, dtype=jnp.int32)[:, None, None, None] * group
    h = h + jnp.arange(group, dtype=jnp.int32)[:, None, None]
    q = q + jnp.arange(q_block, dtype=jnp.int32)[:, None]
    return b, h, q, k + jnp.arange(width, dtype=jnp.int32)


def _starts_in_whole(tiled: TiledCall, place: Place) -> tuple[Array, Array, Array, Array]:
    """The first (b, h, q, k) of a tile in the whole arrays, of a place in a device's part."""
    origin = tiled.conditions.origin
    head = place.column * tiled.tiling.group + origin.head
    return place.row + origin.row, head, place.query + origin.query, place.key


def _allowed(tiled: TiledCall, place: Place, width: int) -> Array:
    """Where the mask allows, and query and key exist and count, rank 5."""
    tiling, conditions = tiled.tiling, tiled.conditions
    # the indices are arrays of their own: fused into what reads them, each entry would look its place up again
    index = lax.optimization_barrier(_indices(tiled, place, width))
    parts = [(index[3] >= place.first) & (index[3] < tiling.kv_len)]
    if tiling.padded[0] != tiling.q_len:
        parts.append(index[2] - conditions.origin.query < tiling.q_len)
    if conditions.mask is not None:
        parts.append(fold(conditions.mask, lambda mask: _evaluate(tiled, mask, place, index)))
    return _rank_5(functools.reduce(operator.and_, parts))


def _evaluate(tiled: TiledCall, mask: Mask, place: Place, index: tuple[Array, ...]) -> Array:
    """Where one part of a mask's expression allows, on the axes that it reads."""
    if isinstance(mask, Dense):
        return _slice(tiled, mask.keep, place, index[3].shape[-1])
    return jnp.asarray(in_place(mask, tiled.tiling, tiled.conditions.origin).allowed(*restrict(mask, *index)))


def _rank_5(x: Array) -> Array:
    return x.reshape((1,) * (5 - x.ndim) + x.shape)
