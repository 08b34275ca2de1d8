"""Which kernel sums a bias's gradient, its call, and how its results become the gradient of the bias's array."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from maskattn.biases import ALiBi, DenseBias, TableBias
from maskattn_jax.kernels.blockwise.pallas import bias as kernels
from maskattn_jax.kernels.blockwise.pallas.call import Prepared, call, numbers_of, of_query_heads, plane, whole
from maskattn_jax.kernels.blockwise.pallas.states import of_device, states_of
from maskattn_jax.kernels.blockwise.sizes import Tile, power_of_two


def run_bias(prepared: Prepared, tensors: tuple[Array, ...]) -> list[Array]:
    """The gradients of a bias's float arrays, of their shapes; tensors: query, key, value, d_output, lse, delta."""
    bias: Any = prepared.given.bias
    if isinstance(bias, TableBias):
        count = bias.table.shape[0]
        sums = _sums(prepared, tensors, kernels.by_table_row, power_of_two(count))
        return [_of_heads(prepared, jnp.sum(sums, axis=(0, 2))[:, :count].T, bias.table.shape, 1)]
    if isinstance(bias, ALiBi):
        sums = _sums(prepared, tensors, kernels.by_slope, 16)
        return [_of_heads(prepared, jnp.sum(sums[..., 0], axis=(0, 2)), bias.slopes.shape, 0)]
    if isinstance(bias, DenseBias):
        return [_dense(prepared, tensors, bias)]
    return []


def _of_heads(prepared: Prepared, mine: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Numbers of this device's heads where all heads have them."""
    if shape[axis] == 1 != mine.shape[axis]:
        return jnp.sum(mine, axis=axis, keepdims=True)
    return _at(mine, shape, {axis: prepared.given.origin.head})


def _at(part: Array, shape: tuple[int, ...], starts: dict[int, Array]) -> Array:
    """The part in an array of zeros."""
    if part.shape == shape:
        return part
    at = [starts[n] if n in starts and part.shape[n] != shape[n] else jnp.int32(0) for n in range(part.ndim)]
    return lax.dynamic_update_slice(jnp.zeros(shape, part.dtype), part, at)


def _sums(prepared: Prepared, tensors: tuple[Array, ...], add: Any, count: int, by_key: bool = False) -> Array:
    """float32 [B, H, tiles, count]: what `add` makes of each row of tiles."""
    (batch, _, heads, _), tile = tensors[0].shape, prepared.sizes.dq
    lists = prepared.lists(tile, by_key=by_key, shared=False)
    job, arrays = prepared.job(tile, lists)
    tiles = lists.rows.shape[2]
    (sums,) = call(
        partial(kernels.sums_kernel, job=job, by_key=by_key, count=count, add=add),
        (tiles, heads, batch),
        [*plane(lists), *of_query_heads(prepared, tensors), *whole(arrays)],
        [((batch, heads, tiles, count), jnp.float32, numbers_of(tiles, more=(count,)))],
        tile,
        prepared.sizes.interpret,
    )
    return sums


def _dense(prepared: Prepared, tensors: tuple[Array, ...], bias: DenseBias) -> Array:
    shape, tiling, origin = bias.shape, prepared.tiling, prepared.given.origin
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    if 2 in axes or 3 in axes:
        by_key = 3 not in axes
        axis, length = (1, tiling.kv_len) if by_key else (0, tiling.q_len)
        block = (prepared.sizes.dq.q, prepared.sizes.dq.k)[axis]
        sums = _sums(prepared, tensors, kernels.along(axis), block, by_key)
        sums = sums.reshape(*sums.shape[:2], -1)[..., :length]
        sums = sums[:, :, None, :] if by_key else sums[..., None]
        sums = jnp.sum(sums, axis=axes, keepdims=True)
    else:
        sums = _pairs(prepared, tensors, bias)
    starts = {0: origin.row, 1: origin.head, 2: origin.query}
    return _at(sums, shape, starts).reshape(bias.array.shape)


def _pairs(prepared: Prepared, tensors: tuple[Array, ...], bias: DenseBias) -> Array:
    tiling, tile = prepared.tiling, _square(prepared.sizes.dq)
    shape = bias.shape
    # batch rows and heads of the result, and how many of the call's share each
    rows, heads = (mine if size > 1 else 1 for size, mine in zip(shape[:2], (tiling.batch, tiling.heads), strict=True))
    shared = tiling.batch // rows, tiling.heads // heads
    origin = prepared.given.origin
    states = of_device(states_of(prepared.given.mask, tiling, origin, tile.q, tile.k), tiling, origin)
    states = jnp.asarray(states, jnp.int32)
    job, arrays = prepared.job(tile, None)
    grid = (-(-tiling.kv_len // tile.k), -(-tiling.q_len // tile.q), rows * heads)
    (sums,) = call(
        partial(kernels.pairs_kernel, job=job, shared=shared, planes=(states.shape[0], states.shape[1])),
        grid,
        [*whole([states]), *_all(tensors, prepared), *whole(arrays)],
        [((rows, heads, tiling.q_len, tiling.kv_len), bias.array.dtype, _plane_of(heads, tiling.q_len, tiling.kv_len))],
        tile,
        prepared.sizes.interpret,
    )
    return sums


def _square(tile: Tile) -> Tile:
    side = min(tile.q, tile.k)
    return Tile(side, side, 4, tile.stages)


def _all(tensors: tuple[Array, ...], prepared: Prepared) -> list[Any]:
    """The arrays whole, in blocks of padded widths."""
    query, key, value, d_output, lse, delta = tensors
    widths = (prepared.depth, prepared.depth, prepared.v_depth, prepared.v_depth)
    given = [
        (x, pl.BlockSpec((*x.shape[:3], width[1]), lambda *_: (0, 0, 0, 0)))
        for x, width in zip((query, key, value, d_output), widths, strict=True)
    ]
    return [*given, *whole([lse, delta])]


def _plane_of(heads: int, q_len: int, kv_len: int) -> Any:
    def place(j: Any, i: Any, plane: Any) -> tuple[Any, ...]:
        return lax.div(plane, jnp.int32(heads)), lax.rem(plane, jnp.int32(heads)), 0, 0

    return pl.BlockSpec((None, None, q_len, kv_len), place)
