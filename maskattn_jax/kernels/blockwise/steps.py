"""What the blockwise kernel has to do: for each row of tiles, the steps that visit its keys.

A *step* takes several adjacent key tiles at once, since the products of XLA's CPU backend run on all cores only when
they are large. The first begins at a row's first tile that is not empty, the next at the first such tile beyond it:

    key tile     0   1   2   3   4   5   6   7   8         F full, M mixed, . empty
    state        F   F   F   F   M   .   .   F   F
    steps       [0   1] [2   3] [4   5]     [7   8]        of two tiles
    after        0   1   2   3   4   7   7   7   8   -     where the next step at or after a tile begins

One loop walks `after`, from the end of a step to where the next one begins. Where some step needs the mask, all apply
it, full ones too: that costs less than a second loop, or a branch, costs to compile. No size depends on a mask's data.
"""

from __future__ import annotations

import functools
import operator
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
from maskattn.typing import NumPyArray
from maskattn_jax._partition import Origin
from maskattn_jax.kernels.blockwise.own import in_place
from maskattn_jax.kernels.blockwise.tiling import CallTiling, block_sizes, divide
from maskattn_jax.types import Given

#: How many key tiles a step takes at once: the one of these that costs least, where the mask's data are known; a step
#: that needs no mask may be wider, or narrower.
_WIDTH, _WIDTHS, _WIDTHS_FULL = 2, (2, 3), (4, 2, 1)
#: What a step costs besides its scores, in scores (measured: rows of 256 take 0.57 of the time of 512, not 0.5).
_STEP = 1 << 15


@partial(jax.tree_util.register_dataclass, data_fields=("after",), meta_fields=("width", "masked", "once"))
@dataclass(frozen=True)
class Steps:
    """The steps of all rows of tiles.

    Attributes:
        width: the number of key tiles that a step reads.
        masked: whether they apply the mask; otherwise every pair is allowed.
        once: whether it is known that every row has exactly one.
        after: int32 [batch or 1, heads or 1, q_tiles or 1, kv_tiles + width]: the tile where the first step that begins
            there or later begins; kv_tiles where there is none.
    """

    width: int
    masked: bool
    once: bool
    after: Array

    def each(self) -> Iterator[tuple[NumPyArray, NumPyArray]]:
        """For steps in NumPy, the first, second, ... of every row: where they begin, and which rows have one."""
        after = np.asarray(self.after)
        kv_tiles = after.shape[-1] - self.width
        begin = after[..., 0]
        while (there := begin < kv_tiles).any():
            yield begin, there
            following = np.minimum(begin, kv_tiles - 1) + self.width
            begin = np.where(there, np.take_along_axis(after, following[..., None], -1)[..., 0], kv_tiles)


def cheapest(
    mask: Mask | None,
    query: Array,
    key: Array,
    whole: tuple[int, int, int, int],
    origin: Origin,
    blocks: tuple[int, int] | None,
) -> tuple[CallTiling, Steps]:
    """The tiles for these arrays and their steps: tiles of `blocks` queries by keys, or those that cost least. `whole`
    is (B, H, L, S) on all devices; the steps are for this device's queries, in all batch rows and heads.
    """
    sizes = [blocks] if blocks else block_sizes(query.shape[1], key.shape[1], is_known(mask))
    tilings = [divide(mask, query, key, whole, one) for one in sizes]
    ways = [(tiling, steps) for tiling in tilings for steps in ways_of(mask, tiling, origin)]
    tiling, steps = ways[0] if len(ways) == 1 else min(ways, key=lambda one: cost(*one))
    return tiling, steps if tiling.shards == 1 else _own(tiling, steps, origin)


def cost(tiling: CallTiling, steps: Steps) -> int:
    """What steps in NumPy cost, in scores of one batch row and group of heads."""
    rows = tiling.group * tiling.q_block
    each = rows * steps.width * tiling.kv_block + _STEP
    again = tiling.shards * tiling.q_tiles if steps.after.shape[2] == 1 else 1
    return each * again * sum(int(there.sum()) for _, there in steps.each())


def ways_of(mask: Mask | None, tiling: CallTiling, origin: Origin) -> list[Steps]:
    """The steps, of each width that is worth a try. Where the mask's data can be read now, they are in NumPy, for the
    queries of all devices; where they are traced, so are the steps, from the mask's bounds for every tile of this
    device's queries.
    """
    states, xp = _states(mask, tiling, origin)
    if tiling.padded[1] != tiling.kv_len:  # the last key tile holds keys that do not exist: it is never full
        last = np.arange(tiling.kv_tiles) == tiling.kv_tiles - 1
        states = xp.where(last & (states == schedule.FULL), schedule.MIXED, states)
    if tiling.q_tiles == tiling.kv_tiles == 1:  # one tile for all batch rows and heads
        least, most = states.min((0, 1), keepdims=True), states.max((0, 1), keepdims=True)
        states = xp.where(least == most, most, schedule.MIXED)
    tried: tuple[int, ...] = (_WIDTH,)
    if xp is np:
        tried = _WIDTHS if (states == schedule.MIXED).any() else _WIDTHS_FULL
    widths = dict.fromkeys(min(width, tiling.kv_tiles) for width in tried)
    return [_steps(states, width, xp) for width in widths]


def _own(tiling: CallTiling, steps: Steps, origin: Origin) -> Steps:
    """The rows of tiles of this device's queries, of steps that may be those of all devices."""
    tile = lax.div(origin.query, jnp.int32(tiling.q_len)) * tiling.q_tiles

    def one(x: Array) -> Array:
        has_all = x.shape[2] == tiling.shards * tiling.q_tiles
        return lax.dynamic_slice_in_dim(jnp.asarray(x), tile, tiling.q_tiles, axis=2) if has_all else x

    return jax.tree.map(one, steps)


def is_known(mask: Mask | None) -> bool:
    """Whether the data of a mask can be read now."""
    return all(peek(leaf) is not None for leaf in jax.tree.leaves(mask))


def _states(mask: Mask | None, tiling: CallTiling, origin: Origin) -> tuple[Given, ModuleType]:
    """EMPTY, MIXED or FULL of every tile, and the module that its array is of: NumPy's [batch or 1, heads or 1, shards
    * q_tiles, kv_tiles], those of each device's queries one after the other (1 for all that are alike), or,
    traced, JAX's of this device's q_tiles.
    """
    if mask is None or isinstance(mask, Full):
        return np.full((1, 1, 1, tiling.kv_tiles), schedule.FULL, np.int8), np
    if not is_known(mask):
        return _traced_states(mask, tiling, origin), jnp
    sizes = (*tiling.whole[:2], tiling.q_len, tiling.kv_len, tiling.q_block, tiling.kv_block)
    shards = range(tiling.shards)
    each = [mask.at(tiling.q_len * n) for n in shards] if len(shards) > 1 else [mask]
    return np.concatenate([schedule.Schedule.of(one, *sizes).states() for one in each], axis=2), np


def _traced_states(mask: Mask, tiling: CallTiling, origin: Origin) -> Array:
    batch = tiling.batch if "b" in mask.depends else 1
    heads = tiling.heads if "h" in mask.depends else 1
    # in NumPy: what of a tile does not depend on the data is known while tracing, and takes no time to compile
    grid = np.ogrid[:batch, :heads, : tiling.q_tiles, : tiling.kv_tiles]
    b, h, i, j = (x.astype(np.int32) for x in grid)
    q_lo, k_lo = i * tiling.q_block, j * tiling.kv_block
    q_hi = np.minimum(q_lo + tiling.q_block, tiling.q_len) - 1
    k_hi = np.minimum(k_lo + tiling.kv_block, tiling.kv_len) - 1
    row, head, query = (first if part else 0 for first, part in zip(origin, tiling.divided, strict=True))
    some, every = in_place(mask, tiling, origin).tile(b + row, h + head, q_lo + query, q_hi + query, k_lo, k_hi)
    return jnp.where(some, jnp.where(every, schedule.FULL, schedule.MIXED), schedule.EMPTY).astype(jnp.int8)


def _steps(states: Given, width: int, xp: ModuleType) -> Steps:
    """The steps of this width: every tile that is not empty is in one of them."""
    kv_tiles = states.shape[-1]
    known = xp is np
    # where one step reads all tiles and they are traced, every row runs it, for what may be nothing
    wanted = states != schedule.EMPTY if known or kv_tiles > width else xp.ones_like(states, bool)
    after = xp.where(wanted, xp.arange(kv_tiles, dtype=xp.int32), kv_tiles).astype(xp.int32)
    last = after.ndim - 1
    after = np.minimum.accumulate(after[..., ::-1], last)[..., ::-1] if known else lax.cummin(after, last, reverse=True)
    after = xp.pad(after, [(0, 0)] * last + [(0, width)], constant_values=kv_tiles)
    if not known:
        return Steps(width, True, kv_tiles == width, after)
    each = list(Steps(width, True, False, after).each())
    # a step that reaches beyond the last tile needs the mask, to leave out what it reads instead
    full = np.pad(states == schedule.FULL, [(0, 0)] * last + [(0, width)])
    whole = functools.reduce(operator.and_, (full[..., n : kv_tiles + 1 + n] for n in range(width)))
    masked = any(not np.take_along_axis(whole, begin[..., None], last)[..., 0][there].all() for begin, there in each)
    once = len(each) == 1 and bool(each[0][1].all())
    return Steps(width, masked, once, after)
