"""How the blockwise kernel reads and writes tiles: the arrays of a call, and where each row of tiles lies in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from maskattn_jax.kernels.blockwise.plan import Layout, Steps
from maskattn_jax.kernels.blockwise.shards import Origin
from maskattn_jax.kernels.blockwise.tile import Place, put_at, slice_at

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


class Part(NamedTuple):
    """One of the tiles that are computed side by side: where it begins, and its first key/value head."""

    place: Place
    kv_column: Array


class Row(NamedTuple):
    """A row of tiles: which one it is along batch, heads and queries, and its parts."""

    batch: Array
    head: Array
    tile: Array
    parts: list[Part]


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
    return np.indices((*layout.groups, layout.q_tiles), np.int32).reshape(3, -1).T


def row(layout: Layout, number: Array) -> Row:
    """The row of tiles that is an entry of `rows`."""
    batch, head, tile = number
    parts = []
    for down, across in np.ndindex(*layout.parts):
        first = (batch * layout.parts[0] + down) * layout.rows
        column = (head * layout.parts[1] + across) * layout.columns
        # a query head h reads key/value head h // (H // K)
        kv_column = lax.div(column, jnp.int32(layout.heads // layout.kv_heads)) if layout.by_head else column
        nothing = tile * 0
        parts.append(Part(Place(first, column, tile * layout.q_block, nothing, nothing, nothing), kv_column))
    return Row(batch, head, tile, parts)


def query_tile(layout: Layout, x: Array, part: Part, dtype: Any) -> Array:
    """The part's queries of [B, L, K, group, D], the heads of a group one after the other: [rows, columns, -1, D]."""
    sizes = (layout.rows, layout.q_block, layout.columns, layout.group, x.shape[-1])
    found = slice_at(x, (part.place.row, part.place.query, part.place.column, 0, 0), sizes).astype(dtype)
    return found.transpose(0, 2, 3, 1, 4).reshape(layout.rows, layout.columns, -1, x.shape[-1])


def put_query_tile(layout: Layout, x: Array, tile: Array, part: Part) -> Array:
    """[B, L, K, group, D] with the part's queries replaced: the inverse of `query_tile`."""
    tile = tile.reshape(*layout.tile, x.shape[-1]).transpose(0, 3, 1, 2, 4)
    return put_at(x, tile, (part.place.row, part.place.query, part.place.column, 0, 0))


def key_tile(layout: Layout, x: Array, part: Part, width: int, dtype: Any) -> Array:
    """Keys or values of a step: [rows, columns, width, D] of [B, S, K, D]."""
    sizes = (layout.rows, width, layout.columns, x.shape[-1])
    return jnp.swapaxes(slice_at(x, (part.place.row, part.place.key, part.kv_column, 0), sizes).astype(dtype), 1, 2)


def visit(
    layout: Layout, steps: Steps, origin: Origin, at: Row, step: Callable[[list[Part], Any], Any], carry: Any
) -> Any:
    """`step(parts, carry)` for each step of one kind in a row of tiles: its parts at the step's keys."""
    batch = at.batch + origin.row if steps.count.shape[0] > 1 else 0
    head = at.head + origin.head if steps.count.shape[1] > 1 else 0
    most = steps.first.shape[-1]
    first, stop = (
        slice_at(jnp.asarray(x), (batch, head, at.tile, 0), (1, 1, 1, most)).reshape(most)
        for x in (steps.first, steps.stop)
    )

    def one(n: Array | int, carry: Any) -> Any:
        begin, end = (slice_at(x, (n,), (1,)).reshape(()) for x in (first, stop))
        # a step that is wider than what is left begins earlier, where it would reach beyond the last tile
        key = jnp.minimum(begin, layout.kv_tiles - steps.width) if steps.masked else begin
        end = jnp.minimum(end * layout.kv_block, layout.kv_len)
        place = {"key": key * layout.kv_block, "first": begin * layout.kv_block, "stop": end}
        return step([part._replace(place=part.place._replace(**place)) for part in at.parts], carry)

    if steps.once:
        return one(0, carry)
    count = slice_at(jnp.asarray(steps.count), (batch, head, at.tile), (1, 1, 1)).reshape(())
    return lax.fori_loop(0, count, one, carry)
