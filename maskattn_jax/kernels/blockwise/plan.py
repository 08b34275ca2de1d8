"""What the blockwise kernel has to do: the sizes of its tiles, and for each row of tiles the key tiles to visit.

A *step* takes several adjacent key tiles at once, since the products of XLA's CPU backend run on all cores only when
they are large. The steps of a row come in kinds: so many tiles wide, and masked or not. Each kind is a rectangle of
indices, with a count per row, so that the loops over it need no size that depends on the data of a mask. A masked step
may be wider than what is left of its run of tiles: it says which of its keys count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskattn import blocks, schedule
from maskattn._fields import peek
from maskattn.masks import Full, Mask
from maskattn_jax.kernels.blockwise.shards import Origin

Array = Any

#: A tile of queries has at most so many rows (what the steps cost decides, where it can be known), one of keys so many
#: columns; more where there are at most so few queries, as in decoding: a step then costs more than its scores.
_Q_BLOCKS, _KV_BLOCK, _KV_BLOCK_FEW, FEW = (512, 256), 256, 512, 32
#: How many key tiles a step takes at once; where no tile needs the mask, the steps have these widths.
_WIDTH, _WIDTHS_FULL = 2, (4, 2, 1)
#: What a step costs besides its scores, in scores (measured: rows of 256 take 0.57 of the time of 512, not 0.5).
_STEP = 1 << 15
#: Where sequences are short a tile takes several batch rows and heads, up to so many scores.
_SCORES = 1 << 16
#: How many tiles that share their steps the forward pass computes side by side: XLA runs operations at once that do not
#: depend on each other. (The backward pass has enough of them in one tile.)
_PARTS = 4


@dataclass(frozen=True)
class Layout:
    """The sizes of a call (of a device's part of it) and of its tiles.

    A tile has `rows` batch rows, `columns` key/value heads, the `group` query heads of each stacked, `q_block` queries
    and, for each key tile of a step, `kv_block` keys. `parts` tiles along the batch and along the heads are computed
    side by side.
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    q_block: int
    kv_block: int
    rows: int
    columns: int
    parts: tuple[int, int]
    whole: tuple[int, int, int, int]  # (B, H, L, S) on all devices
    by_head: bool  # the mask gives heads steps of their own: they are then not stacked, and `columns` is 1

    @property
    def group(self) -> int:
        """How many query heads of one key/value head are stacked in a tile."""
        return 1 if self.by_head else self.heads // self.kv_heads

    @property
    def tile(self) -> tuple[int, int, int, int]:
        """The shape of a tile without its keys: [rows, columns, group, q_block]."""
        return self.rows, self.columns, self.group, self.q_block

    @property
    def groups(self) -> tuple[int, int]:
        """How many groups of parts there are along the batch and along the heads."""
        return self.batch // (self.rows * self.parts[0]), self.heads // (self.group * self.columns * self.parts[1])

    @property
    def q_tiles(self) -> int:
        """Tiles along the queries."""
        return -(-self.q_len // self.q_block)

    @property
    def kv_tiles(self) -> int:
        """Tiles along the keys."""
        return -(-self.kv_len // self.kv_block)

    @property
    def shards(self) -> int:
        """Into how many devices' parts the queries are divided."""
        return max(1, self.whole[2] // max(1, self.q_len))

    @property
    def padded(self) -> tuple[int, int]:
        """The lengths rounded up to whole tiles: queries, keys."""
        return self.q_tiles * self.q_block, self.kv_tiles * self.kv_block


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


def planned(
    mask: Mask | None, query: Array, key: Array, whole: tuple[int, int, int, int], origin: Origin
) -> tuple[Layout, tuple[Steps, ...]]:
    """The tiles for these arrays and what to do with them: tiles that `maskattn.blocks.forcing` asks for, or those that
    cost least. `whole` is (B, H, L, S) on all devices; the plan is for this device's queries, in all batch rows and
    heads.
    """
    chosen = blocks.forced()
    if chosen:
        q_blocks = [chosen[0]]
    elif _is_known(mask):
        q_blocks = sorted({_even(query.shape[1], most) for most in _Q_BLOCKS}, reverse=True)
    else:
        q_blocks = [_even(query.shape[1], _Q_BLOCKS[0])]
    few = query.shape[1] <= FEW
    kv_block = chosen[1] if chosen else _even(key.shape[1], _KV_BLOCK_FEW if few else _KV_BLOCK)
    layouts = [layout(mask, query, key, whole, q_block, kv_block) for q_block in q_blocks]
    found = [(one, plan(mask, one, origin)) for one in layouts]
    best, steps = found[0] if len(found) == 1 else min(found, key=lambda one: cost(*one))
    return best, steps if best.shards == 1 else _own(best, steps, origin)


def _own(layout: Layout, plan: tuple[Steps, ...], origin: Origin) -> tuple[Steps, ...]:
    """The rows of tiles of this device's queries, of a plan that may have those of all devices."""
    tile = lax.div(origin.query, jnp.int32(layout.q_len)) * layout.q_tiles

    def one(x: Array) -> Array:
        has_all = x.shape[2] == layout.shards * layout.q_tiles
        return lax.dynamic_slice_in_dim(jnp.asarray(x), tile, layout.q_tiles, axis=2) if has_all else x

    return jax.tree.map(one, plan)


def cost(layout: Layout, plan: tuple[Steps, ...]) -> int:
    """What the steps of a plan in NumPy cost, in scores of one batch row and group of heads."""
    rows = layout.group * layout.q_block
    return sum(int(steps.count.sum()) * (rows * steps.width * layout.kv_block + _STEP) for steps in plan)


def layout(
    mask: Mask | None, query: Array, key: Array, whole: tuple[int, int, int, int], q_block: int, kv_block: int
) -> Layout:
    """How these arrays are divided into tiles of q_block queries by kv_block keys."""
    (batch, q_len, heads, _), (_, kv_len, kv_heads, _) = query.shape, key.shape
    # tiles whose masks differ cannot share their steps; where there is one tile for each, they all take it
    several = q_len > q_block or kv_len > kv_block
    by_head, by_row = (several and mask is not None and axis in mask.depends for axis in "hb")
    group = 1 if by_head else heads // max(kv_heads, 1)
    room = max(1, _SCORES // (group * q_block * kv_block))
    columns = 1 if by_head else _divisor(kv_heads, room)
    rows = 1 if by_row or columns < kv_heads else _divisor(batch, room // columns)
    most = 2 if blocks.forced() else _PARTS
    across = 1 if by_head else _divisor(kv_heads // columns, most)
    down = 1 if by_row else _divisor(batch // rows, most // across)
    parts = (down, across)
    return Layout(batch, heads, kv_heads, q_len, kv_len, q_block, kv_block, rows, columns, parts, whole, by_head)


def plan(mask: Mask | None, layout: Layout, origin: Origin) -> tuple[Steps, ...]:
    """Every kind of step that occurs. Where the mask's data can be read now, so is the plan, for the queries of all
    devices; where they are traced, it is traced too, from the mask's bounds for every tile of this device's queries.
    """
    states = _states(mask, layout, origin)
    xp: Any = np if isinstance(states, np.ndarray) else jnp
    if layout.q_tiles == layout.kv_tiles == 1:
        least, most = states.min((0, 1), keepdims=True), states.max((0, 1), keepdims=True)
        states = xp.where(least == most, most, schedule.MIXED)
    return tuple(_steps(states, xp))


def _even(length: int, most: int) -> int:
    """The size of the tiles into which a length divides most evenly, none above `most`; a multiple of 8 if several."""
    count = max(1, -(-length // most))
    return max(1, length) if count == 1 else -(-length // (8 * count)) * 8


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`."""
    return max((d for d in range(1, max(count, 1) + 1) if count % d == 0 and d <= most), default=1)


def _states(mask: Mask | None, layout: Layout, origin: Origin) -> Array:
    """EMPTY, MIXED or FULL of every tile: in NumPy [batch or 1, heads or 1, shards * q_tiles, kv_tiles], those of each
    device's queries one after the other (or [1, 1, q_tiles, kv_tiles] for all); traced, of this device's q_tiles.

    The last tile of keys is never full where it is padded.
    """
    padded = layout.padded[1] != layout.kv_len
    if mask is None or isinstance(mask, Full):
        states = np.full((1, 1, layout.q_tiles, layout.kv_tiles), schedule.FULL, np.int8)
    elif _is_known(mask):
        sizes = (*layout.whole[:2], layout.q_len, layout.kv_len, layout.q_block, layout.kv_block)
        each = [mask.at(n * layout.q_len) for n in range(layout.shards)] if layout.shards > 1 else [mask]
        states = np.concatenate([schedule.Schedule.of(one, *sizes).states() for one in each], axis=2)
    else:
        states = _traced_states(mask, layout, origin)
        last = (np.arange(layout.kv_tiles) == layout.kv_tiles - 1) & padded
        return jnp.where(last & (states == schedule.FULL), schedule.MIXED, states)
    if padded:
        states[..., -1] = np.minimum(states[..., -1], schedule.MIXED)
    return states


def _traced_states(mask: Mask, layout: Layout, origin: Origin) -> Array:
    batch = layout.whole[0] if "b" in mask.depends else 1
    heads = layout.whole[1] if "h" in mask.depends else 1
    # in NumPy: what of a tile does not depend on the data is known while tracing, and takes no time to compile
    grid = np.ogrid[:batch, :heads, : layout.q_tiles, : layout.kv_tiles]
    b, h, i, j = (x.astype(np.int32) for x in grid)
    q_lo, k_lo = i * layout.q_block, j * layout.kv_block
    q_hi = np.minimum(q_lo + layout.q_block, layout.q_len) - 1
    k_hi = np.minimum(k_lo + layout.kv_block, layout.kv_len) - 1
    first = origin.query if layout.shards > 1 else 0
    some, every = mask.tile(b, h, q_lo + first, q_hi + first, k_lo, k_hi)
    return jnp.where(some, jnp.where(every, schedule.FULL, schedule.MIXED), schedule.EMPTY).astype(jnp.int8)


def _is_known(mask: Mask | None) -> bool:
    """Whether the data of a mask can be read now."""
    return all(peek(leaf) is not None for leaf in jax.tree.leaves(mask))


def _steps(states: Array, xp: Any) -> Iterator[Steps]:
    """Runs of adjacent tiles cut into steps: each tile that is not empty is in one of them.

    Full tiles come first, in whole steps; what remains of them is masked like its neighbours.
    """
    tile_count = states.shape[-1]
    if xp is np and not (states == schedule.MIXED).any():
        kinds = [(width, False) for width in _WIDTHS_FULL if width <= tile_count]
    else:
        kinds = [(min(_WIDTH, tile_count), masked) for masked in (False, True)]
    free = states != schedule.EMPTY
    for width, masked in kinds:
        begins, stop = _cut(free if masked else free & (states == schedule.FULL), width, masked, xp)
        found = _listed(begins, stop, width, masked, xp)
        if found is not None:
            yield found
        free = free & ~_taken(begins, width, xp)


def _cut(wanted: Array, width: int, masked: bool, xp: Any) -> tuple[Array, Array]:
    """(where steps begin, and before which tile such a step would end): each run of `wanted` is cut from its start into
    steps of `width` tiles; the last of them may be shorter where it is masked.
    """
    at = xp.arange(wanted.shape[-1], dtype=xp.int32)
    last = wanted.ndim - 1
    if xp is np:
        start = np.maximum.accumulate(np.where(wanted, -1, at), axis=last) + 1
        end = np.minimum.accumulate(np.where(wanted, at.size, at)[..., ::-1], axis=last)[..., ::-1]
    else:
        start = lax.cummax(jnp.where(wanted, -1, at), axis=last) + 1
        end = lax.cummin(jnp.where(wanted, at.size, at), axis=last, reverse=True)
    begins = wanted & ((at - start) % width == 0)
    return begins if masked else begins & (at + width <= end), xp.minimum(at + width, end)


def _taken(begins: Array, width: int, xp: Any) -> Array:
    """The tiles of the steps that begin there."""
    taken = begins
    for n in range(1, width):
        taken = taken | xp.concatenate([xp.zeros_like(begins[..., :n]), begins[..., :-n]], -1)
    return taken


def _listed(chosen: Array, stop: Array, width: int, masked: bool, xp: Any) -> Steps | None:
    """The steps of one kind from where they are; None where it is known that there are none."""
    count = chosen.sum(-1).astype(xp.int32)
    first = xp.argsort(~chosen, axis=-1, stable=True).astype(xp.int32)
    once = False
    if xp is np:
        most = int(count.max(initial=0))
        if not most:
            return None
        # a power of two, so that not every length of document is a compilation of its own; two at least: with one, the
        # body of the loop would not depend on its index, and XLA would move it out, to rows that have no such step
        first = first[..., : max(2, 1 << (most - 1).bit_length())]
        once = bool((count == 1).all())
    return Steps(width, masked, once, first, xp.take_along_axis(stop, first, axis=-1).astype(xp.int32), count)
