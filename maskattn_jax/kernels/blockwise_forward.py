"""The forward pass of the blockwise kernel: for each row of tiles, a softmax kept up to date as its keys are visited.

    m' = max(m, max x)    e = exp(x - m')    l' = l exp(m - m') + sum e    o' = o exp(m - m') + e v

(Milakov and Gimelshein 2018, algorithm 3; Rabe and Staats 2021; Dao et al. 2022, algorithm 1.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from maskattn_jax.kernels.blockwise_plan import Layout, Steps
from maskattn_jax.kernels.blockwise_tile import Conditions, Options, Place, kept, put_at, scores, slice_at

Array = Any


class Operands(NamedTuple):
    """The arrays of a call, in their own order and dtype (a tile is transposed when it is read), in whole tiles.

    Attributes:
        query: [B, L, K, H // K, D], or [B, L, H, 1, D] where the mask reads heads.
        key, value: [B, S, K, D], [B, S, K, Dv].
    """

    query: Array
    key: Array
    value: Array


class Row(NamedTuple):
    """A row of tiles: which tile it is along batch, heads and queries, and where it begins."""

    batch: Array
    head: Array
    tile: Array
    place: Place
    kv_column: Array  # its first key/value head


def operands(layout: Layout, query: Array, key: Array, value: Array) -> Operands:
    """The arrays of `attention` as the passes take them."""
    more = layout.padded[1] - layout.kv_len
    key, value = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x for x in (key, value))
    return Operands(group_heads(layout, query), key, value)


def computed_in(query: Array) -> Any:
    """The dtype of the computation: float64 stays, everything else is computed in float32 and rounded at the end."""
    return jnp.float64 if query.dtype == jnp.float64 else jnp.float32


def group_heads(layout: Layout, x: Array) -> Array:
    """[B, L, H, D] -> [B, L, K, H // K, D] (or [B, L, H, 1, D]), padded to whole tiles with 0."""
    more = layout.padded[0] - layout.q_len
    x = jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x
    return x.reshape(*x.shape[:2], -1, layout.group, x.shape[-1])


def ungroup_heads(layout: Layout, x: Array) -> Array:
    """The inverse of `group_heads`."""
    return x[:, : layout.q_len].reshape(layout.batch, layout.q_len, layout.heads, x.shape[-1])


def rows(layout: Layout) -> Array:
    """Every row of tiles as its place along batch, heads and queries: int32 [rows of tiles, 3], queries first."""
    shape = (*layout.planes, layout.q_tiles)
    return np.indices(shape, np.int32).reshape(3, -1).T


def row(layout: Layout, number: Array) -> Row:
    """The row of tiles that is an entry of `rows`."""
    batch, head, tile = number
    column = head * layout.columns
    # a query head h reads key/value head h // (H // K)
    kv_column = lax.div(column, jnp.int32(layout.heads // layout.kv_heads)) if layout.by_head else column
    return Row(batch, head, tile, Place(batch * layout.rows, column, tile * layout.q_block, tile * 0), kv_column)


def query_tile(layout: Layout, x: Array, at: Row, dtype: Any) -> Array:
    """The row's part of [B, L, K, group, D], the heads of a group one after the other: [rows, columns, -1, D]."""
    sizes = (layout.rows, layout.q_block, layout.columns, layout.group, x.shape[-1])
    part = slice_at(x, (at.place.row, at.place.query, at.place.column, 0, 0), sizes).astype(dtype)
    return part.transpose(0, 2, 3, 1, 4).reshape(layout.rows, layout.columns, -1, x.shape[-1])


def put_query_tile(layout: Layout, x: Array, part: Array, at: Row) -> Array:
    """[B, L, K, group, D] with the row's part replaced: the inverse of `query_tile`."""
    part = part.reshape(layout.rows, layout.columns, layout.group, layout.q_block, x.shape[-1])
    return put_at(x, part.transpose(0, 3, 1, 2, 4), (at.place.row, at.place.query, at.place.column, 0, 0))


def key_tile(layout: Layout, x: Array, at: Row, first: Array, width: int, dtype: Any) -> Array:
    """Keys or values of a step: [rows, columns, width, D] of [B, S, K, D]."""
    sizes = (layout.rows, width, layout.columns, x.shape[-1])
    return jnp.swapaxes(slice_at(x, (at.place.row, first, at.kv_column, 0), sizes).astype(dtype), 1, 2)


def steps_of(steps: Steps, at: Row) -> tuple[Array, Array]:
    """(first, count) of one row: int32 [most], where each of its steps begins, and how many there are."""
    batch = at.batch if steps.count.shape[0] > 1 else 0
    head = at.head if steps.count.shape[1] > 1 else 0
    most = steps.first.shape[-1]
    first = slice_at(jnp.asarray(steps.first), (batch, head, at.tile, 0), (1, 1, 1, most)).reshape(most)
    return first, slice_at(jnp.asarray(steps.count), (batch, head, at.tile), (1, 1, 1)).reshape(())


def entry(first: Array, n: Array) -> Array:
    """first[n]."""
    return slice_at(first, (n,), (1,)).reshape(())


def forward(
    layout: Layout, options: Options, given: Operands, conditions: Conditions, sinks: Array | None, plan: Any
) -> tuple[Array, Array]:
    """The output [B, L, H, Dv] in the dtype of the computation, and the log-sum-exp [B, L, H]."""
    dtype = computed_in(given.query)
    shape = (layout.rows, layout.columns, layout.group, layout.q_block)
    lowest = jnp.asarray(jnp.finfo(dtype).min, dtype)
    if sinks is not None:
        sinks = sinks.astype(dtype).reshape(-1, layout.group)

    def attend(results: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        at = row(layout, number)
        query = query_tile(layout, given.query, at, dtype) * jnp.asarray(options.scale, dtype)
        carry = (
            jnp.full(shape, lowest, dtype),
            jnp.zeros(shape, dtype),
            jnp.zeros((*query.shape[:-1], given.value.shape[-1]), dtype),
        )
        for steps in plan:
            first, count = steps_of(steps, at)

            def step(n: Array, carry: Any, steps: Steps = steps, first: Array = first) -> Any:
                place = at.place._replace(key=entry(first, n) * layout.kv_block)
                return _step(layout, options, conditions, given, at, place, query, carry, steps)

            carry = lax.fori_loop(0, count, step, carry)
        sink = None if sinks is None else slice_at(sinks, (at.place.column, 0), shape[1:3])[..., None]
        found = zip(results, _finish(options, *carry, sink), strict=True)
        output, lse = (put_query_tile(layout, total, part, at) for total, part in found)
        return (output, lse), None

    start = (*given.query.shape[:-1], given.value.shape[-1]), (*given.query.shape[:-1], 1)
    (output, lse), _ = lax.scan(attend, tuple(jnp.zeros(shape, dtype) for shape in start), rows(layout))
    return ungroup_heads(layout, output), ungroup_heads(layout, lse)[..., 0]


def _step(
    layout: Layout,
    options: Options,
    conditions: Conditions,
    given: Operands,
    at: Row,
    place: Place,
    query: Array,
    carry: tuple[Array, Array, Array],
    steps: Steps,
) -> tuple[Array, Array, Array]:
    highest, total, output = carry
    width = steps.width * layout.kv_block
    key, value = (key_tile(layout, x, at, place.key, width, query.dtype) for x in (given.key, given.value))
    found = scores(layout, options, conditions, place, query, key, value, steps.masked)
    new = jnp.maximum(highest, jnp.max(found.logits, axis=-1))
    e = jnp.exp(found.logits - new[..., None])
    shrink = jnp.exp(highest - new)
    total = total * shrink + jnp.sum(e, axis=-1)
    factor = kept(layout, conditions.dropout, place, width)
    e = e if factor is None else e * factor.astype(e.dtype)  # the denominator is that without dropout
    flat = (layout.rows, layout.columns, layout.group * layout.q_block)
    added = jnp.einsum("...qk,...kd->...qd", e.reshape(*flat, width), found.value, precision=options.precision)
    return new, total, output * shrink.reshape(*flat, 1) + added


def _finish(options: Options, highest: Array, total: Array, output: Array, sink: Array | None) -> tuple[Array, Array]:
    """The row's output [rows, columns, group * q_block, Dv] and log-sum-exp [rows, columns, group, q_block]."""
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
    return output, jnp.where(empty, -jnp.inf, highest + jnp.log(total))
