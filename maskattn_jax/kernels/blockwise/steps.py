"""What the blockwise kernel has to do: for each row of tiles, the steps that visit its keys.

A *step* takes several adjacent key tiles at once, since the products of XLA's CPU backend run on all cores only when
they are large. Steps come in kinds: so many tiles wide, and masked or not. Full tiles come first, in whole steps; what
is left of them is masked like its neighbours, in steps that may be shorter:

    key tile     0   1   2   3   4   5   6   7   8         F full, M mixed, . empty
    state        F   F   F   F   F   M   .   .   F

    not masked  [0   1] [2   3]                            first 0 2   stop 2 4   count 2
    masked                      [4   5]         [8]        first 4 8   stop 6 9   count 2

The steps of one kind, of all rows of tiles, are rectangles of indices with a count per row, so that the loops over them
need no size that depends on the data of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from maskattn import schedule
from maskattn._fields import peek
from maskattn.masks import Full, Mask
from maskattn_jax.kernels.blockwise.shards import Origin
from maskattn_jax.kernels.blockwise.tiling import CallTiling, block_sizes, divide
from maskattn_jax.types import Given

#: How many key tiles a step takes at once; where no tile needs the mask, the steps have these widths.
_WIDTH, _WIDTHS_FULL = 2, (4, 2, 1)
#: What a step costs besides its scores, in scores (measured: rows of 256 take 0.57 of the time of 512, not 0.5).
_STEP = 1 << 15


@partial(
    jax.tree_util.register_dataclass, data_fields=("first", "stop", "count"), meta_fields=("width", "masked", "once")
)
@dataclass(frozen=True)
class Steps:
    """All steps of one kind.

    Attributes:
        width: the number of key tiles that a step reads.
        masked: whether the mask must be applied; otherwise every pair is allowed.
        once: whether it is known that every row has exactly one.
        first: int32 [batch or 1, heads or 1, q_tiles, most]: the first key tile of each step; `count` of them matter.
        stop: int32, the same shape: the key tile before which it ends, first + width or, masked, less.
        count: int32 [batch or 1, heads or 1, q_tiles].
    """

    width: int
    masked: bool
    once: bool
    first: Array
    stop: Array
    count: Array


def cheapest(
    mask: Mask | None,
    query: Array,
    key: Array,
    whole: tuple[int, int, int, int],
    origin: Origin,
    blocks: tuple[int, int] | None,
) -> tuple[CallTiling, tuple[Steps, ...]]:
    """The tiles for these arrays and every kind of their steps: tiles of `blocks` queries by keys, or those that cost
    least. `whole` is (B, H, L, S) on all devices; the steps are for this device's queries, in all batch rows and heads.
    """
    sizes = [blocks] if blocks else block_sizes(query.shape[1], key.shape[1], is_known(mask))
    tilings = [divide(mask, query, key, whole, one) for one in sizes]
    ways = [(tiling, steps_of(mask, tiling, origin)) for tiling in tilings]
    tiling, kinds = ways[0] if len(ways) == 1 else min(ways, key=lambda one: cost(*one))
    return tiling, kinds if tiling.shards == 1 else _own(tiling, kinds, origin)


def cost(tiling: CallTiling, kinds: tuple[Steps, ...]) -> int:
    """What steps in NumPy cost, in scores of one batch row and group of heads."""
    rows = tiling.group * tiling.q_block
    return sum(int(steps.count.sum()) * (rows * steps.width * tiling.kv_block + _STEP) for steps in kinds)


def steps_of(mask: Mask | None, tiling: CallTiling, origin: Origin) -> tuple[Steps, ...]:
    """Every kind of step that occurs. Where the mask's data can be read now, steps are in NumPy, for the queries of all
    devices; where they are traced, so are the steps, from the mask's bounds for every tile of this device's queries.
    """
    states, xp = _states(mask, tiling, origin)
    if tiling.padded[1] != tiling.kv_len:  # the last key tile holds keys that do not exist: it is never full
        last = np.arange(tiling.kv_tiles) == tiling.kv_tiles - 1
        states = xp.where(last & (states == schedule.FULL), schedule.MIXED, states)
    if tiling.q_tiles == tiling.kv_tiles == 1:  # one tile for all batch rows and heads
        least, most = states.min((0, 1), keepdims=True), states.max((0, 1), keepdims=True)
        states = xp.where(least == most, most, schedule.MIXED)
    return tuple(_steps(states, xp))


def _own(tiling: CallTiling, kinds: tuple[Steps, ...], origin: Origin) -> tuple[Steps, ...]:
    """The rows of tiles of this device's queries, of steps that may be those of all devices."""
    tile = lax.div(origin.query, jnp.int32(tiling.q_len)) * tiling.q_tiles

    def one(x: Array) -> Array:
        has_all = x.shape[2] == tiling.shards * tiling.q_tiles
        return lax.dynamic_slice_in_dim(jnp.asarray(x), tile, tiling.q_tiles, axis=2) if has_all else x

    return jax.tree.map(one, kinds)


def is_known(mask: Mask | None) -> bool:
    """Whether the data of a mask can be read now."""
    return all(peek(leaf) is not None for leaf in jax.tree.leaves(mask))


def _states(mask: Mask | None, tiling: CallTiling, origin: Origin) -> tuple[Given, ModuleType]:
    """EMPTY, MIXED or FULL of every tile, and the module that its array is of: NumPy's [batch or 1, heads or 1, shards
    * q_tiles, kv_tiles], those of each device's queries one after the other (or [1, 1, q_tiles, kv_tiles] for all), or,
    traced, JAX's of this device's q_tiles.
    """
    if mask is None or isinstance(mask, Full):
        return np.full((1, 1, tiling.q_tiles, tiling.kv_tiles), schedule.FULL, np.int8), np
    if not is_known(mask):
        return _traced_states(mask, tiling, origin), jnp
    sizes = (*tiling.whole[:2], tiling.q_len, tiling.kv_len, tiling.q_block, tiling.kv_block)
    shards = range(tiling.shards)
    each = [mask.at(tiling.q_len * n) for n in shards] if len(shards) > 1 else [mask]
    return np.concatenate([schedule.Schedule.of(one, *sizes).states() for one in each], axis=2), np


def _traced_states(mask: Mask, tiling: CallTiling, origin: Origin) -> Array:
    batch = tiling.whole[0] if "b" in mask.depends else 1
    heads = tiling.whole[1] if "h" in mask.depends else 1
    # in NumPy: what of a tile does not depend on the data is known while tracing, and takes no time to compile
    grid = np.ogrid[:batch, :heads, : tiling.q_tiles, : tiling.kv_tiles]
    b, h, i, j = (x.astype(np.int32) for x in grid)
    q_lo, k_lo = i * tiling.q_block, j * tiling.kv_block
    q_hi = np.minimum(q_lo + tiling.q_block, tiling.q_len) - 1
    k_hi = np.minimum(k_lo + tiling.kv_block, tiling.kv_len) - 1
    first = origin.query if tiling.shards > 1 else 0
    some, every = mask.tile(b, h, q_lo + first, q_hi + first, k_lo, k_hi)
    return jnp.where(some, jnp.where(every, schedule.FULL, schedule.MIXED), schedule.EMPTY).astype(jnp.int8)


def _steps(states: Given, xp: ModuleType) -> Iterator[Steps]:
    """The steps of every kind: each tile that is not empty is in one of them."""
    at = xp.arange(states.shape[-1], dtype=xp.int32)
    left = states != schedule.EMPTY
    for width, masked in _kinds(states, xp):
        wanted = left if masked else left & (states == schedule.FULL)
        start, end = _runs(wanted, xp)
        first = at - (at - start) % width  # of the step that a tile would be in: each run is cut from its start
        taken = wanted if masked else wanted & (first + width <= end)
        left = left & ~taken
        yield from _listed(taken & (first == at), xp.minimum(at + width, end), width, masked, xp)


def _kinds(states: Given, xp: object) -> list[tuple[int, bool]]:
    """(width, masked) of the kinds of steps that these tiles may need, in their order."""
    tile_count = states.shape[-1]
    if xp is np and not (states == schedule.MIXED).any():
        return [(width, False) for width in _WIDTHS_FULL if width <= tile_count]
    return [(min(_WIDTH, tile_count), masked) for masked in (False, True)]


def _runs(wanted: Given, xp: ModuleType) -> tuple[Given, Given]:
    """For each tile that is wanted, the first tile of the run of such tiles that it is in, and the first beyond it."""
    at = xp.arange(wanted.shape[-1], dtype=xp.int32)
    last = wanted.ndim - 1
    before, after = xp.where(wanted, -1, at), xp.where(wanted, at.size, at)  # the tiles that end a run
    if xp is np:
        start = np.maximum.accumulate(before, axis=last) + 1
        return start, np.minimum.accumulate(after[..., ::-1], axis=last)[..., ::-1]
    return lax.cummax(before, axis=last) + 1, lax.cummin(after, axis=last, reverse=True)


def _listed(begins: Given, stop: Given, width: int, masked: bool, xp: ModuleType) -> Iterator[Steps]:
    """The steps of one kind from the tiles in which they begin; nothing where it is known that there are none."""
    count = begins.sum(-1).astype(xp.int32)
    first = xp.argsort(~begins, axis=-1, stable=True).astype(xp.int32)
    once = False
    if xp is np:
        most = int(count.max(initial=0))
        if not most:
            return
        # a power of two, so that not every length of document is a compilation of its own; two at least: with one, the
        # body of the loop would not depend on its index, and XLA would move it out, to rows that have no such step
        first = first[..., : max(2, 1 << (most - 1).bit_length())]
        once = bool((count == 1).all())
    yield Steps(width, masked, once, first, xp.take_along_axis(stop, first, axis=-1).astype(xp.int32), count)
