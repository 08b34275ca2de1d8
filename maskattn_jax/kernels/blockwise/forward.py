"""The forward pass of the blockwise kernel: for each row of tiles, a softmax kept up to date as its keys are visited.

    m' = max(m, max x)    e = exp(x - m')    l' = l exp(m - m') + sum e    o' = o exp(m - m') + e v

(Milakov and Gimelshein 2018, algorithm 3; Rabe and Staats 2021; Dao et al. 2022, algorithm 1.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from maskattn_jax._varying import manual_axes, vary
from maskattn_jax.kernels.blockwise import arrays
from maskattn_jax.kernels.blockwise.tile import cleared, kept, scores
from maskattn_jax.kernels.blockwise.tiled_call import Options, TiledCall, ungroup_heads


class _Sums(NamedTuple):
    """The softmax of a tile so far: its largest logit and denominator [rows, columns, group, q_block], its output
    [rows, columns, group * q_block, Dv] before the division.
    """

    highest: Array
    total: Array
    output: Array


def output_and_lse(tiled: TiledCall) -> tuple[Array, Array, Array | None]:
    """The output [B, L, H, Dv] in the dtype of the computation, the log-sum-exp [B, L, H], and `_found`, [B, L, H],
    where a bias can make the log-sum-exp so large that it matters.
    """
    tiling, dtype, sinks = tiled.tiling, tiled.dtype, tiled.sinks
    if sinks is not None:
        sinks = sinks.astype(dtype).reshape(-1, tiling.group)
    axes = manual_axes((tiled.query, tiled.key, tiled.value))
    nothing = _Sums(
        jnp.full(tiling.tile, jnp.finfo(dtype).min, dtype),
        jnp.zeros(tiling.tile, dtype),
        jnp.zeros((*tiling.flat, tiled.value.shape[-1]), dtype),
    )
    nothing = vary(nothing, axes)

    def attend(at: arrays.Row, results: tuple[Array, ...]) -> tuple[Array, ...]:
        scale = jnp.asarray(tiled.options.scale, dtype)
        queries = [arrays.query_tile(tiled, tiled.query, part) * scale for part in at.parts]
        sums = [nothing] * len(at.parts)

        def step(parts: list[arrays.Part], sums: list[_Sums]) -> list[_Sums]:
            return [_step(tiled, *one) for one in zip(parts, queries, sums, strict=True)]

        sums = arrays.visit(tiled, at, step, sums)
        for part, one in zip(at.parts, sums, strict=True):
            sink = None
            if sinks is not None:
                sink = arrays.slice_at(sinks, (part.place.column, 0), tiling.tile[1:3])[..., None]
            finished = _finish(tiled.options, one, sink)
            results = tuple(arrays.put_query_tile(tiled, x, y, part) for x, y in zip(results, finished, strict=False))
        return results

    shape = tiled.query.shape[:-1]
    numbers = 1 if tiled.conditions.bias is None else 2
    start = jnp.zeros((*shape, tiled.value.shape[-1]), dtype), *[jnp.zeros((*shape, 1), dtype)] * numbers
    results = arrays.each_row(tiling, attend, vary(start, axes))
    output, lse, *rest = (ungroup_heads(tiling, x) for x in results)
    return output, lse[..., 0], rest[0][..., 0] if rest else None


def _step(tiled: TiledCall, part: arrays.Part, query: Array, sums: _Sums) -> _Sums:
    """The softmax of a tile with the keys of one step taken in."""
    flat, width = tiled.tiling.flat, tiled.step_width
    key, value = arrays.key_tiles(tiled, part, width)
    logits, _ = scores(tiled, part.place, query, key)
    value = cleared(tiled, value, logits, -jnp.inf)
    highest = jnp.maximum(sums.highest, jnp.max(logits, axis=-1))
    e = jnp.exp(logits - highest[..., None])
    shrink = jnp.exp(sums.highest - highest)
    total = sums.total * shrink + jnp.sum(e, axis=-1)
    factor = kept(tiled, part.place, width)
    e = e if factor is None else e * factor.astype(e.dtype)  # the denominator is that without dropout
    precision = tiled.options.precision
    added = jnp.einsum("...qk,...kd->...qd", e.reshape(*flat, width), value, precision=precision)
    return _Sums(highest, total, sums.output * shrink.reshape(*flat, 1) + added)


def _finish(options: Options, sums: _Sums, sink: Array | None) -> tuple[Array, Array, Array]:
    """The row's output [rows, columns, group * q_block, Dv], its log-sum-exp [rows, columns, group, q_block] and, in
    the same shape, `_found`.
    """
    highest, total, output = sums
    shrink = jnp.ones_like(total)
    if sink is not None:
        most = jnp.maximum(highest, sink)
        shrink = jnp.exp(highest - most)
        highest, total = most, total * shrink + jnp.exp(sink - most)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    flat = (*output.shape[:-1], 1)
    output = output * (shrink / total).reshape(flat)
    instead = jnp.nan if options.empty_rows == "nan" else 0.0
    output = jnp.where(empty.reshape(flat), jnp.asarray(instead, output.dtype), output)
    lse = highest + jnp.log(total)
    return output, jnp.where(empty, -jnp.inf, lse), _found(highest, total, lse)


def _found(highest: Array, total: Array, lse: Array) -> Array:
    """What a row's weights exp(x - lse) add up to: 1, but where a bias of -1e9, say, for all keys (a row that is
    padding only) leaves in the log-sum-exp no digit for how many keys there are.
    """
    return jnp.exp(jnp.log(total) - (lse - highest))
