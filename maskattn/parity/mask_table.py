"""The masks that cases are made of: one line a mask, and every case, composition and table line follows from it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskattn import masks
from maskattn.parity.draws import Draws


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention: B, L, S, H, K, D, Dv."""

    batch: int
    q_len: int
    kv_len: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """[B, H, L, S]."""
        return (self.batch, self.heads, self.q_len, self.kv_len)


#: What makes a mask for a shape; None where the mask does not fit the shape.
Maker = Callable[[Shape, Draws], "masks.Mask | None"]


def _lengths(shape: Shape, draws: Draws) -> np.ndarray:
    """Lengths in [0, S], one of them 0 wherever the batch leaves another that is not."""
    lengths = draws.integers(1, shape.kv_len + 1, (shape.batch,))
    if shape.batch > 1:
        lengths[draws.integer(0, shape.batch)] = 0
    return lengths


def _segments(shape: Shape, draws: Draws) -> masks.Mask:
    """Ids -1 (padding), 0 (a segment like any other), 1 and 2."""
    q_ids = np.sort(draws.integers(-1, 3, (shape.batch, shape.q_len)), axis=1)
    if shape.q_len == shape.kv_len:
        return masks.Segments(q_ids)
    return masks.Segments(q_ids, np.sort(draws.integers(-1, 3, (shape.batch, shape.kv_len)), axis=1))


def _factors(size: int) -> tuple[int, int]:
    """The two factors of `size` nearest to each other, the smaller first."""
    return max((d, size // d) for d in range(1, int(size**0.5) + 1) if size % d == 0)


def _shifted_window(shape: Shape, draws: Draws) -> masks.Mask | None:
    window = _factors(shape.q_len)
    if shape.q_len != shape.kv_len or shape.batch % 4 or min(window) < 2:
        return None
    shift = (draws.integer(1, window[0]), draws.integer(1, window[1]))
    return masks.ShiftedWindow((2 * window[0], 2 * window[1]), window, shift)


def _window_partition(shape: Shape, draws: Draws) -> masks.Mask | None:
    grid = _factors(shape.q_len)
    if shape.q_len != shape.kv_len or grid[0] % 2 or grid[1] % 3:
        return None
    return masks.WindowPartition(grid, (grid[0] // 2, grid[1] // 3), (draws.integer(0, 2), draws.integer(0, 2)))


def _on_grid(make_one: Callable[[tuple[int, int], Draws], masks.Mask]) -> Maker:
    """A mask over a grid of all positions: where L = S, and the grid is more than a line."""

    def maker(shape: Shape, draws: Draws) -> masks.Mask | None:
        grid = _factors(shape.q_len)
        return make_one(grid, draws) if shape.q_len == shape.kv_len and min(grid) > 1 else None

    return maker


def _square_only(make_one: Callable[[Shape, Draws], masks.Mask]) -> Maker:
    """A mask of self-attention: where L = S."""
    return lambda shape, draws: make_one(shape, draws) if shape.q_len == shape.kv_len else None


def _block_sparse(shape: Shape, draws: Draws) -> masks.Mask:
    size = 4
    return masks.BlockSparse(draws.booleans((shape.heads, -(-shape.q_len // size), -(-shape.kv_len // size))), size)


def _tree(shape: Shape, draws: Draws) -> masks.Mask:
    """Every node's parent is an earlier node; the first is the root."""
    return masks.Tree(np.array([-1, *(draws.integer(0, node) for node in range(1, shape.q_len))]))


def _per_head(shape: Shape, draws: Draws) -> masks.Mask:
    return masks.PerHead(tuple(masks.SlidingWindow(head, head % 2) for head in range(shape.heads)))


def _random_blocks(shape: Shape, draws: Draws) -> masks.Mask | None:
    """Where there are no more blocks of queries than of keys."""
    blocks = -(-shape.kv_len // 3)
    if shape.q_len > 3 * blocks:
        return None
    return masks.RandomBlocks(draws.integer(0, 1 << 20), 3, min(2, blocks), blocks)


MASKS: dict[str, tuple[Maker, ...]] = {
    "Full": (lambda s, d: masks.Full(),),
    "Empty": (lambda s, d: masks.Empty(),),
    "Dense": (
        lambda s, d: masks.Dense(d.booleans(s.scores, 0.6)),
        lambda s, d: masks.Dense(d.booleans((1, s.heads, 1, s.kv_len), 0.3)),
    ),
    "Causal": (
        lambda s, d: masks.Causal(),
        lambda s, d: masks.Causal.end_aligned(s.q_len, s.kv_len),
        lambda s, d: masks.Causal(d.integer(-s.q_len, s.kv_len)),
    ),
    "SlidingWindow": (
        lambda s, d: masks.SlidingWindow(d.integer(0, 4), d.integer(0, 4)),
        lambda s, d: masks.SlidingWindow(None, d.integer(0, 3)),
        lambda s, d: masks.SlidingWindow(d.integer(1, 5), 0),
    ),
    "PrefixLM": (
        lambda s, d: masks.PrefixLM(d.integer(0, s.kv_len + 1)),
        lambda s, d: masks.PrefixLM(d.integers(0, s.kv_len + 1, (s.batch,))),
    ),
    "KeyPadding": (lambda s, d: masks.KeyPadding(_lengths(s, d)),),
    "KeyMask": (lambda s, d: masks.KeyMask(d.booleans((s.batch, s.kv_len), 0.7)),),
    "QueryMask": (lambda s, d: masks.QueryMask(d.booleans((s.batch, s.q_len), 0.7)),),
    "Segments": (_segments,),
    "ShiftedWindow": (_shifted_window,),
    "WindowPartition": (_window_partition,),
    "BlockCausal": (lambda s, d: masks.BlockCausal(d.integer(2, 6)),),
    "Dilated": (lambda s, d: masks.Dilated(d.integer(1, 4), d.integer(1, 4)),),
    "Strided": (lambda s, d: masks.Strided(d.integer(2, 6)),),
    "Chunked": (lambda s, d: masks.Chunked(d.integer(2, 8)),),
    "Global": (_square_only(lambda s, d: masks.Global(d.booleans((s.batch, s.kv_len), 0.2))),),
    "RandomBlocks": (_random_blocks,),
    "Neighborhood": (_on_grid(lambda grid, d: masks.Neighborhood(grid, (3, 2))),),
    "Axial": (_on_grid(lambda grid, d: masks.Axial(grid, d.integer(0, 2))),),
    "BlockSparse": (_block_sparse,),
    "Tree": (_square_only(_tree),),
    "PerHead": (_per_head,),
}


def make(name: str, variant: int, shape: Shape, draws: Draws) -> masks.Mask | None:
    """Variant `variant` of mask `name` for `shape`, or None where it does not fit it."""
    return MASKS[name][variant](shape, draws)


def compose(shape: Shape, draws: Draws, depth: int) -> masks.Mask:
    """A random expression of the masks of the table, of the given depth."""
    if depth == 0:
        return _leaf(shape, draws)
    kind = draws.integer(0, 8)
    if kind == 0:
        return ~compose(shape, draws, depth - 1)
    if kind == 1:
        moved = compose(shape, draws, depth - 1)
        return moved.at(q_offset=draws.integer(-2, 3), k_offset=draws.integer(-1, 2))
    parts = [compose(shape, draws, depth - 1) for _ in range(2 + (kind == 2))]
    return functools.reduce(operator.or_ if kind < 5 else operator.and_, parts)


def _leaf(shape: Shape, draws: Draws) -> masks.Mask:
    names = list(MASKS)
    while True:
        name = names[draws.integer(0, len(names))]
        mask = make(name, draws.integer(0, len(MASKS[name])), shape, draws)
        if mask is not None:
            return mask
