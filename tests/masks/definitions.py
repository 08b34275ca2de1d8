"""Random masks and expressions of masks, and what they should allow, told pair by pair in plain Python.

None of the code under test is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from maskattn import masks

RELATIONAL = ("full", "empty", "causal", "window", "prefix", "prefixes", "partition")
SLOTS = ("dense", "padding", "key", "query", "segments", "cross_segments")


@dataclass(frozen=True)
class Even(masks.Mask):
    """A mask of a user's own."""

    period: Any = 2

    def allowed(self, b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q + k) % self.period == 0


def combined(m: Any, ask: Callable[[Any], bool]) -> bool | None:
    """What & | ~ make of the parts, each asked for; None where the mask is none of the three."""
    name = type(m).__name__
    if name in ("And", "Or"):
        return (all if name == "And" else any)(ask(part) for part in m.parts)
    return not ask(m.part) if name == "Not" else None


def pair(m: Any, b: int, h: int, q: int, k: int) -> bool:
    """Whether the mask allows this pair, by its definition."""
    name = type(m).__name__
    found = combined(m, lambda part: pair(part, b, h, q, k))
    if found is not None:
        return found
    if name in ("Full", "Empty"):
        return name == "Full"
    if name == "At":
        moves = [offset if np.ndim(offset) == 0 else row(offset, b) for offset in (m.q_offset, m.k_offset)]
        return pair(m.part, b, h, q + int(moves[0]), k + int(moves[1]))
    if name == "Positioned":
        places = (entry(m.q_pos, b, q), entry(m.k_pos, b, k))
        return None not in places and pair(m.part, b, h, *places)
    if name == "Stored":
        tokens = (entry(m.q_tokens, b, q), entry(m.k_tokens, b, k))
        return None not in tokens and min(tokens) >= 0 and pair(m.part, b, h, *tokens)
    if name == "Dense":
        keep = m.keep.reshape((1,) * (4 - m.keep.ndim) + m.keep.shape)
        where = [0 if n == 1 else i for n, i in zip(keep.shape, (b, h, q, k), strict=True)]
        inside = all(0 <= i < n for n, i in zip(keep.shape, where, strict=True))
        return inside and bool(keep[tuple(where)])
    if name == "Causal":
        return k in range(min(k, q + m.offset), q + m.offset + 1)
    if name == "SlidingWindow":
        before, after = max(q - k, 0), max(k - q, 0)
        return (m.left is None or before <= m.left) and (m.right is None or after <= m.right)
    if name == "PrefixLM":
        return k < (m.prefix if np.ndim(m.prefix) == 0 else row(m.prefix, b)) or k <= q
    if name == "KeyPadding":
        return k in range(row(m.lengths, b))
    if name == "KeyMask":
        return bool(entry(m.keep, b, k))
    if name == "QueryMask":
        return bool(entry(m.keep, b, q))
    if name == "Segments":
        ids = (entry(m.q_ids, b, q), entry(m.q_ids if m.k_ids is None else m.k_ids, b, k))
        return None not in ids and ids[0] == ids[1] and ids[0] >= 0
    if name == "ShiftedWindow":
        windows = cut(rolled(m.grid, m.shift), m.window)
        window = windows[b % len(windows)]
        return 0 <= q < len(window) and 0 <= k < len(window) and neighbours(window[q], window[k], m)
    if name == "WindowPartition":
        n = int(np.prod(m.grid))
        if not (0 <= q < n and 0 <= k < n):
            return False
        places = [tuple(int(i) for i in np.unravel_index(p, m.grid)) for p in (q, k)]
        windows = cut(rolled(m.grid, m.shift), m.window)
        return any(places[0] in w and places[1] in w for w in windows) and neighbours(*places, m)
    raise AssertionError(f"no definition of {name} here")


def row(values: Any, b: int) -> int:
    return int(values[0 if len(values) == 1 else b])


def entry(values: Any, b: int, i: int) -> Any:
    rows, size = values.shape
    return values[0 if rows == 1 else b, i].item() if 0 <= i < size else None


def rolled(grid: tuple[int, ...], shift: tuple[int, ...]) -> np.ndarray:
    """The coordinates of every token, the grid rolled by -shift as Swin rolls it: object array of tuples."""
    coordinates = np.empty(grid, dtype=object)
    for place in itertools.product(*(range(n) for n in grid)):
        coordinates[place] = place
    return np.roll(coordinates, [-s for s in shift], axis=tuple(range(len(grid))))


def cut(array: np.ndarray, window: tuple[int, ...]) -> list[list[Any]]:
    """Windows in row-major order, each a list of its entries in row-major order."""
    corners = itertools.product(*(range(0, n, w) for n, w in zip(array.shape, window, strict=True)))
    return [
        list(array[tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))].ravel()) for corner in corners
    ]


def neighbours(one: tuple[int, ...], other: tuple[int, ...], m: Any) -> bool:
    """Whether two tokens of one window stood in the grid, before it was rolled, as they stand in the window."""
    return all(i - j == (i - s) % n - (j - s) % n for i, j, s, n in zip(one, other, m.shift, m.grid, strict=True))


def brute(m: Any, batch: int, heads: int, q_len: int, kv_len: int) -> np.ndarray:
    sizes = (batch, heads, q_len, kv_len)
    return np.array([pair(m, *indices) for indices in np.ndindex(sizes)], dtype=bool).reshape(sizes)


@st.composite
def sizes(draw: Any) -> tuple[int, int, int, int]:
    return draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(st.integers(1, 7))


@st.composite
def leaves(draw: Any, shape: tuple[int, int, int, int], kinds: tuple[str, ...] = RELATIONAL + SLOTS) -> Any:
    """A mask that fits the shape; now and then with an axis that broadcasts."""
    batch, heads, q_len, kv_len = shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.sampled_from((1, batch)))
    kind = draw(st.sampled_from(kinds))
    if kind == "segments" and q_len != kv_len:
        kind = "cross_segments"
    if kind == "partition" and q_len != kv_len:
        kind = "causal"
    if kind == "dense":
        keep = rng.random([draw(st.sampled_from((1, n))) for n in shape]) < 0.6
        return masks.Dense(keep[0] if keep.shape[0] == 1 and draw(st.booleans()) else keep)
    if kind == "partition":
        window = draw(st.sampled_from([w for w in range(1, q_len + 1) if q_len % w == 0]))
        return masks.WindowPartition((q_len,), window, draw(st.integers(0, window - 1)))
    makers = {
        "full": masks.Full,
        "empty": masks.Empty,
        "causal": lambda: masks.Causal(draw(st.integers(-3, 3))),
        "window": lambda: masks.SlidingWindow(*(draw(st.none() | st.integers(0, 3)) for _ in range(2))),
        "prefix": lambda: masks.PrefixLM(draw(st.integers(0, 5))),
        "prefixes": lambda: masks.PrefixLM(rng.integers(0, 6, rows)),
        "padding": lambda: masks.KeyPadding(rng.integers(0, kv_len + 1, rows)),
        "key": lambda: masks.KeyMask(rng.random((rows, kv_len)) < 0.7),
        "query": lambda: masks.QueryMask(rng.random((rows, q_len)) < 0.7),
        "segments": lambda: masks.Segments(rng.integers(-1, 3, (rows, q_len))),
        "cross_segments": lambda: masks.Segments(rng.integers(-1, 3, (rows, q_len)), rng.integers(-1, 3, (1, kv_len))),
    }
    return makers[kind]()


@st.composite
def moved(draw: Any, inner: Any, shape: tuple[int, int, int, int]) -> Any:
    """The mask moved, or with positions, or as it is."""
    batch, _, q_len, kv_len = shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    how = draw(st.sampled_from(("", "", "at", "rows", "positions", "stored")))
    if how == "at":
        return inner.at(draw(st.integers(-3, 3)), draw(st.integers(-3, 3)))
    if how == "rows":
        return inner.at(rng.integers(-3, 4, batch), np.array(draw(st.integers(-3, 3))))
    if how == "positions":
        return inner.with_positions(rng.integers(-2, 9, (batch, q_len)), rng.integers(-2, 9, (1, kv_len)))
    if how == "stored":
        return masks.Stored(inner, rng.integers(-2, 9, (1, q_len)), rng.integers(-2, 9, (batch, kv_len)))
    return inner


@st.composite
def expressions(draw: Any, shape: tuple[int, int, int, int]) -> Any:
    """Up to three masks, each perhaps moved, combined at random."""
    result = draw(moved(draw(leaves(shape)), shape))
    for _ in range(draw(st.integers(0, 2))):
        other = draw(moved(draw(leaves(shape)), shape))
        other = ~other if draw(st.booleans()) else other
        result = result & other if draw(st.booleans()) else result | other
        result = draw(moved(result, shape)) if draw(st.booleans()) else result
    return result


@st.composite
def shaped_expressions(draw: Any) -> tuple[tuple[int, int, int, int], Any]:
    shape = draw(sizes())
    return shape, draw(expressions(shape))
