"""Pieces hold every allowed pair once, and where they apply no mask, nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from maskattn import masks
from maskattn.parity.attention.cases import Shape, compose
from maskattn.parity.draws import Draws
from maskattn.schedule.pieces import MIXED, NO_LIMITS, OPEN, TRIANGLE, Limits, cut, pieces_of

SHAPES = [Shape(3, 40, 56, 4, 2, 8, 8), Shape(2, 130, 130, 2, 2, 8, 8), Shape(1, 33, 7, 3, 1, 8, 8)]


def count(found, shape):
    """How often each pair is in a piece, and in one that does not ask the mask; and whether `first` is right."""
    times, sure = np.zeros((2, shape.batch, shape.heads, shape.q_len, shape.kv_len), int)
    begun = np.zeros((shape.batch, shape.heads, shape.q_len), bool)
    for piece in found:
        rows = np.zeros_like(begun)
        for n in range(piece.count):
            q, k = piece.q + n * piece.q_step, piece.k + n * piece.k_step
            triangle = np.tri(piece.rows, piece.cols, dtype=bool) if piece.kind == TRIANGLE else True
            where = np.ix_(piece.batch, piece.heads, range(q, q + piece.rows), range(k, k + piece.cols))
            times[where] += triangle
            sure[where] += np.asarray(triangle) * (piece.kind != MIXED)
            assert not rows[where[0][..., 0], where[1][..., 0], where[2][..., 0]].any()
            rows[where[0][..., 0], where[1][..., 0], where[2][..., 0]] = True
        assert piece.first == (not (begun & rows).any())
        begun |= rows
    return times, sure


def faults(mask, shape, found):
    times, sure = count(found, shape)
    allowed = mask.dense(shape.q_len, shape.kv_len, shape.batch, shape.heads)
    return [
        *(["a pair is missing"] if (allowed & (times == 0)).any() else []),
        *(["a pair is there twice"] if (times > 1).any() else []),
        *(["a forbidden pair is taken for allowed"] if (sure.astype(bool) & ~allowed).any() else []),
    ]


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(16, 24)])
@pytest.mark.parametrize("blocks", [None, (8, 8), (5, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_masks(shape, blocks, limits):
    for number in range(12):
        mask = compose(shape, Draws(number), depth=number % 3)
        sizes = (shape.batch, shape.heads, shape.kv_heads, shape.q_len, shape.kv_len)
        found = pieces_of(mask, *sizes, limits, blocks)
        assert faults(mask, shape, found) == [], mask
        group = shape.heads // shape.kv_heads
        parts = [part for piece in found for part in cut(piece, group, entries=64, area=1000 if limits.rows else 0)]
        times, _ = count([p for p in parts if p.first], shape)
        assert (times <= 1).all()
        assert all(p.count == 1 or len(p.batch) == 1 for p in parts)
        assert all(p.heads[0] // group == p.heads[-1] // group or len(p.heads) % group == 0 for p in parts), mask
        together, again = count(found, shape)[0], sum_of(parts, shape)
        assert (together == again).all(), mask


def sum_of(parts, shape):
    return sum(count([part.__class__(**{**vars(part), "first": True})], shape)[0] for part in parts)


def test_the_checker_sees_faults():
    shape = SHAPES[0]
    mask = masks.Causal() & masks.SlidingWindow(9)
    found = pieces_of(mask, 3, 4, 2, 40, 56, blocks=(8, 8))
    assert faults(mask, shape, found) == []
    moved = [p.__class__(**{**vars(p), "k": p.k + 1}) for p in found if p.k + p.cols < 56 - 8]
    assert "a pair is missing" in faults(mask, shape, [*moved, *found[len(moved) :]])
    opened = [p.__class__(**{**vars(p), "kind": OPEN}) for p in found]
    assert "a forbidden pair is taken for allowed" in faults(mask, shape, opened)


DOCUMENTS = np.repeat([0, 1, 2, 3], [100, 17, 300, 95])[None]


@pytest.mark.parametrize(
    ("mask", "shapes"),
    [
        (masks.Causal(), [(TRIANGLE, 512, 512)]),
        (masks.Causal(offset=100), [(OPEN, 512, 100), (TRIANGLE, 412, 412), (OPEN, 100, 412)]),
        (masks.PrefixLM(200), [(OPEN, 512, 200), (TRIANGLE, 312, 312)]),
        (masks.KeyPadding([201]), [(OPEN, 512, 201)]),
        (masks.Segments(DOCUMENTS), [(OPEN, n, n) for n in (100, 17, 300, 95)]),
        (masks.Segments(DOCUMENTS) & masks.Causal(), [(TRIANGLE, n, n) for n in (100, 17, 300, 95)]),
        (masks.Chunked(128), [(OPEN, 128, 128)] * 4),
    ],
)
def test_known_masks_need_no_evaluation(mask, shapes):
    """Documents, padding, chunks and causal masks become exact rectangles and triangles, whatever the tiles."""
    found = pieces_of(mask, 1, 8, 8, 512, 512)
    area = sum((p.rows * (p.cols + 1) // 2 if p.kind == TRIANGLE else p.rows * p.cols) * p.count for p in found)
    assert {p.kind for p in found} <= {OPEN, TRIANGLE}
    assert area == mask.dense(512, 512).sum() == sum(r * (c + 1) // 2 if k == TRIANGLE else r * c for k, r, c in shapes)
    assert len(found) <= len(shapes) + 1


def test_a_window_is_one_series():
    found = pieces_of(masks.SlidingWindow(255), 2, 8, 8, 8192, 8192)
    assert [(p.kind, p.rows, p.cols, p.count) for p in found] == [(TRIANGLE, 256, 256, 1), (MIXED, 64, 320, 124)]


def test_nothing_to_do():
    assert pieces_of(masks.Empty(), 2, 4, 4, 300, 300) == []
    assert pieces_of(None, 2, 4, 4, 0, 5) == pieces_of(masks.Causal(), 2, 4, 4, 5, 0) == []
