"""How the blockwise kernel reads and writes tiles: where they are in the arrays of a call, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from maskattn._arithmetic import zero
from maskattn_jax.kernels.blockwise.tiled_call import TiledCall
from maskattn_jax.kernels.blockwise.tiling import CallTiling

C = TypeVar("C")


class Place(NamedTuple):
    """Where a tile begins: the first batch row, key/value head (query head where the mask reads heads), query, key; of
    the keys those from `first` on count.
    """

    row: Array
    column: Array
    query: Array
    key: Array
    first: Array


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


def each_row(tiling: CallTiling, attend: Callable[[Row, C], C], carry: C) -> C:
    """`attend(row, carry)` for each row of tiles, queries first."""
    # the bounds are ints, so that this is a scan: what is differentiated once more may not be a loop without an end
    count = math.prod(tiling.groups) * tiling.q_tiles
    # without jit a number is an int
    return lax.fori_loop(0, count, lambda n, carry: attend(_row(tiling, jnp.asarray(n, jnp.int32)), carry), carry)


def _row(tiling: CallTiling, number: Array) -> Row:
    """The row of tiles of a number."""
    heads, tiles = jnp.int32(tiling.groups[1]), jnp.int32(tiling.q_tiles)
    group, tile = lax.div(number, tiles), lax.rem(number, tiles)
    batch, head = lax.div(group, heads), lax.rem(group, heads)
    parts = []
    for down, across in np.ndindex(*tiling.parts):
        first = (batch * tiling.parts[0] + down) * tiling.rows
        column = (head * tiling.parts[1] + across) * tiling.columns
        # a query head h reads key/value head h // (H // K)
        kv_column = lax.div(column, jnp.int32(tiling.heads // tiling.kv_heads)) if tiling.by_head else column
        nothing = zero(tile)  # on the devices that tile is on
        parts.append(Part(Place(first, column, tile * tiling.q_block, nothing, nothing), kv_column))
    return Row(batch, head, tile, parts)


def visit(tiled: TiledCall, at: Row, step: Callable[[list[Part], C], C], carry: C) -> C:
    """`step(parts, carry)` for each step of a row of tiles: its parts at the step's keys."""
    tiling, origin, steps = tiled.tiling, tiled.conditions.origin, tiled.conditions.steps
    batch, heads, tiles, _ = steps.after.shape
    own = [
        divided and size == part
        for divided, size, part in zip(tiling.divided, (batch, heads), (tiling.batch, tiling.heads), strict=False)
    ]
    mine = (
        (at.batch if own[0] else at.batch + origin.row) if batch > 1 else 0,
        (at.head if own[1] else at.head + origin.head) if heads > 1 else 0,
        at.tile if tiles > 1 else 0,
    )

    def step_after(tile: Array) -> Array:
        return slice_at(jnp.asarray(steps.after), (*mine, tile), (1, 1, 1, 1)).reshape(())

    def one(begin: Array, carry: C) -> C:
        # a step that reaches beyond the last tile reads earlier ones in their place
        key = jnp.minimum(begin, tiling.kv_tiles - steps.width)
        place = {"key": key * tiling.kv_block, "first": begin * tiling.kv_block}
        return step([part._replace(place=part.place._replace(**place)) for part in at.parts], carry)

    def following(state: tuple[Array, C]) -> tuple[Array, C]:
        begin, carry = state
        return step_after(begin + steps.width), one(begin, carry)

    begin = step_after(zero(at.tile))
    if steps.once:
        return one(begin, carry)
    return lax.while_loop(lambda state: state[0] < tiling.kv_tiles, following, (begin, carry))[1]


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
