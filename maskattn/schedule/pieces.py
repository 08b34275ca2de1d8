"""The score matrix as few, large rectangles: what a kernel does that hands whole blocks to a library.

A `Schedule` lists small tiles. Here neighbouring tiles become one rectangle, and rectangles of one shape that stand at
regular distances (a window's, a document's, those of several batch rows) become one `Piece`, which strided views can
hand over in one call.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from maskattn.masks import Mask
from maskattn.schedule.rectangles import MIXED, OPEN, TRIANGLE, Planes, Rectangle, coarser, from_rows, from_tiles
from maskattn.schedule.tiles import Schedule
from maskattn.typing import NumPyArray as Array

__all__ = ["MIXED", "NO_LIMITS", "OPEN", "TRIANGLE", "Limits", "Piece", "cut", "pieces_of"]


#: Tiles of this many queries and keys; wider ones of the second are taken where they cost less.
_FINE, _COARSE = 64, 256
#: Up to this length a call that evaluates the mask for every pair may be the cheapest.
_SHORT = 128
#: The mask of so few pairs is evaluated rather than looked at in tiles.
_FEW_PAIRS = 1 << 16
#: What a call costs beside its products, in pairs.
_CALL = 40000


@dataclass(frozen=True)
class Piece:
    """`count` rectangles of rows x cols pairs, for each of some batch rows and heads.

    Rectangle n holds queries q + n * q_step and following, keys k + n * k_step and following; rectangles share no
    query.

    Attributes:
        batch, heads: the batch rows and (query) heads.
        q, k: the first query and the first key of the first rectangle.
        q_step, k_step: queries and keys from one rectangle to the next.
        count, rows, cols: how many rectangles, and the queries and keys of each.
        kind: which of the pairs are allowed: OPEN, all; TRIANGLE, those with k - first key <= q - first query;
            MIXED, the mask must be asked.
        first: whether no piece before this one holds any of its queries.
    """

    batch: range
    heads: range
    q: int
    k: int
    q_step: int
    k_step: int
    count: int
    rows: int
    cols: int
    kind: int
    first: bool = False

    def taking(self, batch: range, n: int, count: int) -> Piece:
        """The `count` rectangles from the n-th on, for some of the batch rows."""
        return replace(self, batch=batch, q=self.q + n * self.q_step, k=self.k + n * self.k_step, count=count)


class Limits(NamedTuple):
    """The most queries and keys that a rectangle may have; both 0 for no limits. With limits there is no TRIANGLE."""

    rows: int
    cols: int


NO_LIMITS = Limits(0, 0)


def pieces_of(
    mask: Mask | None,
    batch: int,
    heads: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    limits: Limits = NO_LIMITS,
    blocks: tuple[int, int] | None = None,
) -> list[Piece]:
    """The rectangles that `mask` (True = may attend; data in NumPy) leaves to do. None allows everything.

    Heads of a piece read one key/value head, or they are all heads, or there are as many of both kinds.

    Args:
        batch, heads, kv_heads, q_len, kv_len: the sizes of the scores, and how many heads keys have.
        limits: the most queries and keys of a rectangle.
        blocks: the tiles to start from, queries by keys; None chooses.
    """
    if not (batch and heads and q_len and kv_len):
        return []
    depends = frozenset() if mask is None else mask.depends
    sizes = _Counts(batch, heads, kv_heads, batch if "b" in depends else 1, heads if "h" in depends else 1)
    if mask is None:
        ways = [{(0, 0): [Rectangle(0, q_len, 0, kv_len, OPEN)]}]
    elif blocks is not None:
        ways = [from_tiles(Schedule.of(mask, batch, heads, q_len, kv_len, *blocks))]
    else:
        ways = list(_ways(mask, sizes, q_len, kv_len))
    placed = [list(_placed(planes, sizes, limits)) for planes in ways]
    return _marked(min(placed, key=_cost), sizes, q_len)


def cut(piece: Piece, group: int, entries: int, area: int = 0) -> Iterator[Piece]:
    """The piece in parts that have one rectangle, or one batch row.

    Rectangles that have keys in common are done a few at once, at most `entries` keys of one head in a part, since the
    gradients of each are made before they are added up; if `area` is not 0, a part has at most so many pairs, if not
    of one head of one rectangle.

    `group` is the number of heads that read one key/value head: a part has some of one group, or whole groups.
    """
    at_once = len(piece.heads) * max(piece.count, len(piece.batch))
    if piece.count > 1 and piece.k_step < piece.cols:
        at_once = max(1, min(at_once, entries // piece.cols))
    if area:
        at_once = max(1, min(at_once, area // (piece.rows * piece.cols)))
    width = min(len(piece.heads), at_once)
    if len(piece.heads) > group:
        width = width // group * group or max(n for n in range(1, width + 1) if group % n == 0)
    step = max(1, at_once // width)
    for heads in _slices(piece.heads, width):
        some = replace(piece, heads=heads)
        if piece.count == 1 or piece.count < len(piece.batch):
            for n in range(piece.count):
                yield from (some.taking(batch, n, 1) for batch in _slices(piece.batch, step))
        else:
            for batch in _slices(piece.batch, 1):
                yield from (some.taking(batch, n, min(step, piece.count - n)) for n in range(0, piece.count, step))


def _slices(numbers: range, step: int) -> Iterator[range]:
    return (numbers[start : start + step] for start in range(0, len(numbers), step))


class _Counts(NamedTuple):
    """`rows`, `columns`: of how many batch rows and heads the mask has rectangles, 1 where it does not read them."""

    batch: int
    heads: int
    kv_heads: int
    rows: int
    columns: int


def _ways(mask: Mask, sizes: _Counts, q_len: int, kv_len: int) -> Iterator[Planes]:
    """Ways to cover what the mask allows, of which the cheapest is taken."""
    few = sizes.rows * sizes.columns * q_len * kv_len <= _FEW_PAIRS
    if few or max(q_len, kv_len) <= _SHORT:
        yield {plane: [Rectangle(0, q_len, 0, kv_len, MIXED)] for plane in np.ndindex(sizes.rows, sizes.columns)}
    if few:
        return
    fine = Schedule.of(mask, sizes.batch, sizes.heads, q_len, kv_len, _FINE, _FINE)
    planes = from_rows(mask, fine)
    if planes is not None:
        yield planes
    if planes is None or any(r.kind == MIXED for rectangles in planes.values() for r in rectangles):
        yield from_tiles(fine)
        yield from_tiles(coarser(fine, _COARSE // _FINE))


def _cost(pieces: Iterable[Piece]) -> float:
    """The time that pieces take, in pairs: products of few rows are slower, a mask and a call cost something."""
    total = 0.0
    for x in pieces:
        pairs = (x.rows + 20) * (x.cols + 8) * x.count * len(x.batch) * len(x.heads)
        share = {OPEN: 1.0, TRIANGLE: 0.5 + 64 / (x.rows + 64), MIXED: 1.08}[x.kind]
        total += pairs * share + _CALL * min(x.count, len(x.batch)) * (1.0 if x.first else 2.0)
    return total


def _limited(rectangles: Iterable[Rectangle], limits: Limits) -> Iterator[Rectangle]:
    """The rectangles cut to the limits; a triangle's blocks are open, but for those on its diagonal."""
    for r in rectangles:
        if limits == NO_LIMITS:
            yield r
            continue
        for q in range(r.q_lo, r.q_hi, limits.rows):
            q_hi, end = min(q + limits.rows, r.q_hi), r.k_hi
            if r.kind == TRIANGLE:
                end = r.k_lo + q - r.q_lo
                yield Rectangle(q, q_hi, end, end + q_hi - q, MIXED)
            for k in range(r.k_lo, end, limits.cols):
                yield Rectangle(q, q_hi, k, min(k + limits.cols, end), OPEN if r.kind == TRIANGLE else r.kind)


class _Series(NamedTuple):
    """`repeats` rectangles like `head`, each q_step queries and k_step keys after the one before."""

    head: Rectangle
    q_step: int = 0
    k_step: int = 0
    repeats: int = 1

    def nth(self, n: int) -> Rectangle:
        return self.head.moved(n * self.q_step, n * self.k_step)

    def with_next(self, r: Rectangle) -> _Series:
        last = self.nth(self.repeats - 1)
        return _Series(self.head, r.q_lo - last.q_lo, r.k_lo - last.k_lo, self.repeats + 1)


def _series(rectangles: Iterable[Rectangle]) -> list[_Series]:
    """The rectangles of one plane as series at regular distances.

    A rectangle continues the series that leads to it. Where none does, it makes one with a single rectangle of its
    shape that lies before it; where there is none either, it is the next single one.
    """
    done: list[_Series] = []
    expected: dict[Rectangle, int] = {}  # what would continue a series -> where that is in `done`
    singles: dict[tuple[int, int, int], list[int]] = {}  # by shape, where in `done`
    for r in rectangles:
        at = expected.pop(r, None)
        if at is None:
            alike = singles.setdefault(r.shape, [])
            # only the latest: rectangles without a pattern must not be compared each with each
            before = [n for n in alike[-4:] if done[n].head.q_hi <= r.q_lo and done[n].head.k_lo <= r.k_lo]
            if not before:
                alike.append(len(done))
                done.append(_Series(r))
                continue
            at = before[-1]
            alike.remove(at)
        done[at] = done[at].with_next(r)
        expected[done[at].nth(done[at].repeats)] = at
    return done


def _placed(planes: Planes, sizes: _Counts, limits: Limits) -> Iterator[Piece]:
    """Pieces: series that several batch rows or heads have in common, once."""
    having: dict[_Series, dict[int, list[int]]] = {}  # series -> batch row -> heads
    for (b, h), rectangles in sorted(planes.items()):
        for series in _series(_limited(rectangles, limits)):
            having.setdefault(series, {}).setdefault(b, []).append(h)
    for series, heads_of in having.items():
        rows_of: dict[tuple[int, ...], list[int]] = {}  # heads -> the batch rows in which these have the series
        for b, some in heads_of.items():
            rows_of.setdefault(tuple(some), []).append(b)
        r = series.head
        for some_heads, some_rows in rows_of.items():
            heads = [range(sizes.heads)] if sizes.columns == 1 else _together(some_heads, sizes.heads, sizes.kv_heads)
            rows = [range(sizes.batch)] if sizes.rows == 1 else _progressions(some_rows)
            for columns, batch in itertools.product(heads, rows):
                yield Piece(batch, columns, r.q_lo, r.k_lo, *series[1:], *r.shape)


def _together(numbers: Sequence[int], heads: int, kv_heads: int) -> Iterator[range]:
    """Some of the heads, in parts whose keys a strided view holds."""
    if kv_heads == heads or len(numbers) == heads:
        yield from _progressions(numbers)
        return
    group = heads // kv_heads
    for kv_head in dict.fromkeys(h // group for h in numbers):
        yield from _progressions([h for h in numbers if h // group == kv_head])


def _progressions(numbers: Sequence[int]) -> Iterator[range]:
    """Ascending numbers as arithmetic progressions."""
    start = 0
    while start < len(numbers):
        step = numbers[start + 1] - numbers[start] if start + 1 < len(numbers) else 1
        end = start + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        if end - start == 2 and step > 1:  # two numbers far apart are no pattern
            end, step = start + 1, 1
        yield range(numbers[start], numbers[end - 1] + 1, step)
        start = end


def _marked(pieces: Iterable[Piece], sizes: _Counts, q_len: int) -> list[Piece]:
    """The pieces, each marked where it is the first for its queries."""
    begun: dict[tuple[int, int], Array] = {}
    marked = []
    for piece in pieces:
        fresh = True
        for b in piece.batch if sizes.rows > 1 else (0,):
            for h in piece.heads if sizes.columns > 1 else (0,):
                seen = begun.setdefault((b, h), np.zeros(q_len, bool))
                for n in range(piece.count):
                    start = piece.q + n * piece.q_step
                    fresh &= not seen[start : start + piece.rows].any()
                    seen[start : start + piece.rows] = True
        marked.append(replace(piece, first=fresh))
    return marked
