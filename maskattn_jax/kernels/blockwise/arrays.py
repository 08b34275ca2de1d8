"""How the blockwise kernel reads and writes tiles: where they are in the arrays of a call, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from maskattn._arithmetic import zero
from maskattn_jax.kernels.blockwise.steps import Steps
from maskattn_jax.kernels.blockwise.tiled_call import TiledCall
from maskattn_jax.kernels.blockwise.tiling import CallTiling


class Place(NamedTuple):
    """Where a tile begins: the first batch row, key/value head (query head where the mask reads heads), query, key; of
    the keys of a masked tile those from `first` to before `stop` count.
    """

    row: Array
    column: Array
    query: Array
    key: Array
    first: Array
    stop: Array


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


def rows(tiling: CallTiling) -> Array:
    """Every row of tiles as its place along batch, heads and queries: int32 [rows of tiles, 3], queries first."""
    # of NumPy until `lax.scan` takes them
    return cast(Array, np.indices((*tiling.groups, tiling.q_tiles), np.int32).reshape(3, -1).T)


def row(tiling: CallTiling, number: Array) -> Row:
    """The row of tiles that is an entry of `rows`."""
    batch, head, tile = number
    parts = []
    for down, across in np.ndindex(*tiling.parts):
        first = (batch * tiling.parts[0] + down) * tiling.rows
        column = (head * tiling.parts[1] + across) * tiling.columns
        # a query head h reads key/value head h // (H // K)
        kv_column = lax.div(column, jnp.int32(tiling.heads // tiling.kv_heads)) if tiling.by_head else column
        nothing = zero(tile)  # on the devices that tile is on
        parts.append(Part(Place(first, column, tile * tiling.q_block, nothing, nothing, nothing), kv_column))
    return Row(batch, head, tile, parts)


def visit(tiled: TiledCall, steps: Steps, at: Row, step: Callable[[list[Part], Any], Any], carry: Any) -> Any:
    """`step(parts, carry)` for each step of one kind in a row of tiles: its parts at the step's keys."""
    tiling, origin = tiled.tiling, tiled.conditions.origin
    batch = at.batch + origin.row if steps.count.shape[0] > 1 else 0
    head = at.head + origin.head if steps.count.shape[1] > 1 else 0
    most = steps.first.shape[-1]
    first, stop = (
        slice_at(jnp.asarray(x), (batch, head, at.tile, 0), (1, 1, 1, most)).reshape(most)
        for x in (steps.first, steps.stop)
    )

    def one(n: Array | int, carry: object) -> Any:
        begin, end = (slice_at(x, (n,), (1,)).reshape(()) for x in (first, stop))
        # a step that is wider than what is left begins earlier, where it would reach beyond the last tile
        key = jnp.minimum(begin, tiling.kv_tiles - steps.width) if steps.masked else begin
        end = jnp.minimum(end * tiling.kv_block, tiling.kv_len)
        place = {"key": key * tiling.kv_block, "first": begin * tiling.kv_block, "stop": end}
        return step([part._replace(place=part.place._replace(**place)) for part in at.parts], carry)

    if steps.once:
        return one(0, carry)
    count = slice_at(jnp.asarray(steps.count), (batch, head, at.tile), (1, 1, 1)).reshape(())
    return lax.fori_loop(0, count, one, carry)


def query_tile(tiled: TiledCall, x: Array, part: Part) -> Array:
    """The part's queries of [B, L, K, group, D], the heads of a group one after the other: [rows, columns, -1, D]."""
    tiling = tiled.tiling
    sizes = (tiling.rows, tiling.q_block, tiling.columns, tiling.group, x.shape[-1])
    tile = slice_at(x, (part.place.row, part.place.query, part.place.column, 0, 0), sizes).astype(tiled.dtype)
    return tile.transpose(0, 2, 3, 1, 4).reshape(*tiling.flat, x.shape[-1])


def put_query_tile(tiled: TiledCall, x: Array, tile: Array, part: Part) -> Array:
    """[B, L, K, group, D] with the part's queries replaced: the inverse of `query_tile`."""
    tile = tile.reshape(*tiled.tiling.tile, x.shape[-1]).transpose(0, 3, 1, 2, 4)
    return put_at(x, tile, (part.place.row, part.place.query, part.place.column, 0, 0))


def key_tiles(tiled: TiledCall, part: Part, width: int) -> tuple[Array, Array]:
    """Keys and values of a step: [rows, columns, width, D] and [rows, columns, width, Dv]."""
    tiling, starts = tiled.tiling, (part.place.row, part.place.key, part.kv_column, 0)

    def read(x: Array) -> Array:
        sizes = (tiling.rows, width, tiling.columns, x.shape[-1])
        return jnp.swapaxes(slice_at(x, starts, sizes).astype(tiled.dtype), 1, 2)

    return read(tiled.key), read(tiled.value)


def slice_at(x: Array, starts: Sequence[Array | int], sizes: Sequence[int]) -> Array:
    """`lax.dynamic_slice` at starts of one dtype, whether x64 is on or off; none of them is negative."""
    return lax.dynamic_slice(x, _starts(starts), sizes, allow_negative_indices=False)


def put_at(x: Array, part: Array, starts: Sequence[Array | int]) -> Array:
    """`lax.dynamic_update_slice`, as `slice_at`."""
    return lax.dynamic_update_slice(x, part, _starts(starts), allow_negative_indices=False)


def add_at(x: Array, part: Array, starts: Sequence[Array | int]) -> Array:
    """`x` with `part` added where it starts."""
    return put_at(x, slice_at(x, starts, part.shape) + part, starts)


def _starts(starts: Sequence[Array | int]) -> list[Array]:
    return [jnp.asarray(start, jnp.int32) for start in starts]
