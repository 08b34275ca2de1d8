"""What a kernel walks: for each row of tiles, which tiles of the other side it visits, and which of them unmasked.

    row of tiles      its tiles, mixed ones first            row of `rows`
    3                 [2 3 | 0 1]                            (3, 2, 2, 0): tile, mixed, full, first full

Where the full tiles of each row are consecutive, they are not listed: from the first on they are counted. The rows with
most work come first, as far as that is known. Sizes are those of the call's shapes where the mask has data (new
documents compile nothing); where it has none, a row holds as many entries as the longest needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from maskattn.masks import And, Causal, Full, KeyPadding, Mask, PrefixLM, SlidingWindow
from maskattn.schedule import EMPTY, FULL, MIXED
from maskattn.typing import NumPyArray
from maskattn_jax._partition import Origin
from maskattn_jax.kernels.blockwise.pallas.states import of_device, states_of
from maskattn_jax.kernels.blockwise.sizes import Tile, power_of_two
from maskattn_jax.kernels.blockwise.tiling import CallTiling
from maskattn_jax.types import Given

#: A mixed tile costs so many full ones, in 5ths: its mask is evaluated.
_MIXED, _FULL = 6, 5


@partial(jax.tree_util.register_dataclass, data_fields=("rows", "index"), meta_fields=("ranges",))
@dataclass(frozen=True)
class Lists:
    """
    Attributes:
        rows: int32 [B or 1, H or 1, rows of tiles, 4]: tile, how many mixed and full tiles it has, the first full one.
        index: int32 [B or 1, H or 1, rows of tiles, entries]: the mixed tiles, then the full ones (not with `ranges`).
        ranges: whether the full tiles of every row are consecutive.
    """

    rows: Given
    index: Given
    ranges: bool


def lists_of(mask: Mask | None, tiling: CallTiling, origin: Origin, tile: Tile, *, by_key: bool, shared: bool) -> Lists:
    """The lists of this device's rows of tiles: of queries, which visit keys, or the other way round.

    `shared`: one order of rows for all heads.
    """
    states = states_of(mask, tiling, origin, tile.q, tile.k)
    xp: Any = np if isinstance(states, np.ndarray) else jnp
    # the side that is walked is read without bounds where a tile is full
    beyond = tiling.q_len % tile.q if by_key else tiling.kv_len % tile.k
    if beyond:
        axis = 2 if by_key else 3
        count = states.shape[axis]
        last = (np.arange(count) == count - 1).reshape((1, 1, -1, 1) if by_key else (1, 1, 1, -1))
        states = xp.where(last & (states == FULL), MIXED, states)
    if by_key:
        states = xp.swapaxes(states, -1, -2)
    made = _known(states, shared) if isinstance(states, np.ndarray) else _traced(states, by_key, intervals(mask))
    rows, index = (of_device(x, tiling, origin) for x in (made.rows, made.index))
    return Lists(rows, index, made.ranges)


def _known(states: NumPyArray, shared: bool) -> Lists:
    mixed, full = states == MIXED, states == FULL
    ranges = bool(((np.diff(full.astype(np.int8), axis=-1, prepend=0) == 1).sum(-1) <= 1).all())
    counts = mixed.sum(-1) if ranges else (states != EMPTY).sum(-1)
    entries = power_of_two(max(1, int(counts.max(initial=1))))
    wanted = mixed if ranges else states != EMPTY
    rank = np.where(mixed, 0, np.where(wanted, 1, 2))
    index = np.argsort(rank, axis=-1, kind="stable")[..., : min(entries, states.shape[-1])].astype(np.int32)
    order = np.argsort(-_work(mixed.sum(-1), full.sum(-1), shared), axis=-1, kind="stable")
    rows = np.stack([mixed.sum(-1), full.sum(-1), full.argmax(-1)], -1)
    rows = np.concatenate([order[..., None], np.take_along_axis(rows, order[..., None], 2)], -1)
    return Lists(rows.astype(np.int32), np.take_along_axis(index, order[..., None], 2), ranges)


def intervals(mask: Mask | None) -> bool:
    """Whether the full tiles of a row of tiles are consecutive, either way, whatever the data: one interval of keys for
    a query, and of queries for a key.
    """
    if isinstance(mask, And):
        return all(map(intervals, mask.parts))
    return mask is None or isinstance(mask, (Full, Causal, SlidingWindow, KeyPadding, PrefixLM))


def _traced(states: Array, by_key: bool, ranges: bool) -> Lists:
    mixed, full = states == MIXED, states == FULL
    tiles = states.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, states.shape, 3)
    rank = jnp.where(mixed, 0, jnp.where(full, tiles, 2 * tiles)) + place
    index = lax.rem(lax.sort(rank), jnp.int32(tiles))
    n_mixed, n_full = (jnp.sum(x, axis=-1, dtype=jnp.int32) for x in (mixed, full))
    first = jnp.argmax(full, axis=-1).astype(jnp.int32) if ranges else n_full * 0
    rows = jnp.stack([lax.broadcasted_iota(jnp.int32, n_full.shape, 2), n_mixed, n_full, first], -1)
    # not sorted by their work, which is not known: of a causal mask the last queries and the first keys have most
    return Lists(rows, index, ranges) if by_key else Lists(rows[:, :, ::-1], index[:, :, ::-1], ranges)


def _work(mixed: NumPyArray, full: NumPyArray, shared: bool) -> NumPyArray:
    """What each row costs; `shared`: one order of rows for all heads, whose rows one program walks."""
    work = _MIXED * mixed + _FULL * full
    return np.broadcast_to(work.sum(1, keepdims=True), work.shape) if shared else work
