"""Masks that are patterns, each told pair by pair in plain Python, and sizes to draw them at: no code under test."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from maskattn import masks
from tests.masks.definitions import combined

NAMES = (
    "Axial", "BlockCausal", "BlockSparse", "Chunked", "Dilated", "Global", "Neighborhood", "PerHead", "RandomBlocks",
    "Strided", "Tree",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    batch: int
    heads: int
    q_len: int
    kv_len: int
    kv_heads: int = 1

    @property
    def scores(self) -> tuple[int, int, int, int]:
        return (self.batch, self.heads, self.q_len, self.kv_len)


class Draws:
    """What `Mask.examples` draws from, fed by NumPy."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._rng.integers(low, high, shape)

    def booleans(self, shape: tuple[int, ...], share: float) -> np.ndarray:
        return self._rng.random(shape) < share


@st.composite
def patterns(draw: Any, names: tuple[str, ...] = NAMES) -> tuple[Sizes, Any]:
    """(sizes, mask): one example of one of the masks named."""
    square = draw(st.integers(1, 12))
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        sizes = Sizes(batch, heads, square, square)
    else:
        sizes = Sizes(batch, heads, draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    found = []
    for name in (draw(st.sampled_from(names)), *names):
        found = getattr(masks, name).examples(sizes, Draws(draw(st.integers(0, 2**32 - 1))))
        if found:
            break
        sizes = Sizes(batch, heads, square, square)
    return sizes, draw(st.sampled_from(found))


def pair(m: Any, b: int, h: int, q: int, k: int) -> bool:
    """Whether the mask allows this pair, by the table of masks."""
    name = type(m).__name__
    found = combined(m, lambda part: pair(part, b, h, q, k))
    if found is not None:
        return found
    if name == "At":
        return pair(m.part, b, h, q + m.q_offset, k + m.k_offset)
    if name == "Causal":
        return k - q <= m.offset
    if name == "SlidingWindow":
        return q - m.left <= k <= q + m.right
    if name == "BlockCausal":
        return k < block(q, m.size) * m.size + m.size
    if name == "Chunked":
        return block(q, m.size) == block(k, m.size)
    if name == "Dilated":
        return k in [q + i * m.dilation for i in range(-m.window, m.window + 1)]
    if name == "Strided":
        return any(k == q - i * m.stride for i in range(max(q - k, 0) + 1))
    if name == "Global":
        tokens = np.atleast_2d(m.tokens)
        row = tokens[0 if len(tokens) == 1 else b].tolist()
        return 0 <= q < len(row) and 0 <= k < len(row) and (row[q] or row[k])
    if name == "RandomBlocks":
        rows = draw_blocks(m.seed, m.blocks_per_row, m.kv_blocks)
        return 0 <= q < m.block_size * m.kv_blocks and k // m.block_size in rows[q // m.block_size]
    if name == "Neighborhood":
        places = on_grid(m.grid, q, k)
        return places is not None and all(
            k_at in neighbours(q_at, *axis)
            for q_at, k_at, *axis in zip(*places, m.grid, m.kernel, m.dilation, strict=True)
        )
    if name == "Axial":
        places = on_grid(m.grid, q, k)
        return places is not None and all(
            i == j for axis, (i, j) in enumerate(zip(*places, strict=True)) if axis != m.axis
        )
    if name == "BlockSparse":
        maps = m.layout.reshape((-1, *m.layout.shape[-2:]))
        for head, row, column in np.argwhere(maps).tolist():
            whole = range(row * m.block_size[0], (row + 1) * m.block_size[0])
            if q in whole and k in range(column * m.block_size[1], (column + 1) * m.block_size[1]):
                if head == h or len(maps) == 1:
                    return True
        return False
    if name == "Tree":
        trees = np.atleast_2d(m.parents)
        tree = trees[0 if len(trees) == 1 else b].tolist()
        if not (0 <= q < len(tree) and 0 <= k < len(tree)):
            return False
        while q not in (k, -1):
            q = tree[q]
        return q == k
    if name == "PerHead":
        return pair(m.parts[h], b, h, q, k)
    raise AssertionError(f"no definition of {name} here")


def block(i: int, size: int) -> int:
    """The number of the block that i is in, counted by hand."""
    number = 0
    while i < number * size:
        number -= 1
    while i >= (number + 1) * size:
        number += 1
    return number


def on_grid(grid: tuple[int, ...], *positions: int) -> list[tuple[int, ...]] | None:
    every = list(itertools.product(*(range(n) for n in grid)))
    return [every[p] for p in positions] if all(0 <= p < len(every) for p in positions) else None


def neighbours(i: int, n: int, kernel: int, dilation: int) -> list[int]:
    """The `kernel` coordinates that i sees: as near as can be, those of its own dilation group, in one run."""
    group = list(range(i % dilation, n, dilation))
    runs = [group[s : s + kernel] for s in range(len(group) - kernel + 1)]
    holding = [run for run in runs if i in run]
    centred = [run for run in holding if run.index(i) == kernel // 2]
    if centred:
        return centred[0]
    return runs[0] if group.index(i) < kernel // 2 else runs[-1]


@functools.cache
def draw_blocks(seed: int, count: int, blocks: int) -> list[set[int]]:
    """Floyd's algorithm on the words of JAX's own generator."""
    import jax

    rows = []
    for i in range(blocks):
        words = jax.random.bits(jax.random.fold_in(jax.random.key(seed), i), (count,)).tolist() if count else []
        chosen: set[int] = set()
        for word, most in zip(words, range(blocks - count, blocks), strict=True):
            chosen.add(most if word % (most + 1) in chosen else word % (most + 1))
        rows.append(chosen)
    return rows


def brute(m: Any, *sizes: int) -> np.ndarray:
    return np.array([pair(m, *indices) for indices in np.ndindex(sizes)], dtype=bool).reshape(sizes)
