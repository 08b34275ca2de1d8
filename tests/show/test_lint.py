from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from maskattn import masks
from maskattn.parity.attention.cases import Shape, compose
from maskattn.parity.draws import Draws
from tests.masks.definitions import shaped_expressions

TOP_LEFT = (
    "Causal() starts its diagonal at the top left, where query 0 sees key 0 alone; "
    "at {} Causal.end_aligned({}) ends it at the bottom right"
)
NEVER = "SlidingWindow(4095): left=4095 never binds at 64 x 64"


@pytest.mark.parametrize(
    "text, sizes, expected",
    [
        ("causal", (4, 4), []),
        ("full", (4, 4), []),
        ("empty", (4, 4), []),
        ("window(2)", (4, 4), []),
        ("causal", (0, 4), []),
        ("causal(3)", (4, 4), ["the mask allows everything at 4 x 4"]),
        ("causal(-4)", (4, 4), ["the mask allows nothing at 4 x 4"]),
        ("causal(-2)", (5, 5), ["rows that may attend to nothing: q = 0..1"]),
        ("padding([3, 0])", (3, 3), ["rows that may attend to nothing: q = 0..2 (batch row 1)"]),
        ("per_head([causal(-1), full])", (3, 3), ["rows that may attend to nothing: q = 0 (head 0)"]),
        (
            "padding([0, 3, 3]) & per_head([full, causal(-1)])",
            (3, 3),
            [
                "rows that may attend to nothing: q = 0..2 (batch row 0 head 0, batch row 0 head 1); "
                "q = 0 (batch row 1 head 1, batch row 2 head 1)"
            ],
        ),
        (
            "query_mask([[false, true, false, true, false, true, false, true]])",
            (8, 2),
            ["rows that may attend to nothing: q = 0, 2, 4 and 1 more runs"],
        ),
        (
            "causal & window(4095)",
            (64, 64),
            ["SlidingWindow(4095) changes nothing: what it forbids is forbidden without it", NEVER],
        ),
        (
            "prefix(4) & window(4095, none)",
            (64, 64),
            [
                "SlidingWindow(4095, right=None) changes nothing: it allows everything at 64 x 64",
                "SlidingWindow(4095, right=None): left=4095 never binds at 64 x 64",
            ],
        ),
        (
            "(causal & window(64)).at(1) & padding([64])",
            (64, 64),
            [
                "KeyPadding([64]) changes nothing: it allows everything at 64 x 64",
                "SlidingWindow(64) changes nothing: what it forbids is forbidden without it",
                "SlidingWindow(64): left=64 never binds at 64 x 64",
            ],
        ),
        ("causal & window(3, 0)", (9, 9), ["Causal() changes nothing: what it forbids is forbidden without it"]),
        (
            "window(1, 1) & window(2, 2)",
            (8, 8),
            ["SlidingWindow(2, right=2) changes nothing: what it forbids is forbidden without it"],
        ),
        (
            "window(1, 1) | window(2, 2)",
            (8, 8),
            ["SlidingWindow(1, right=1) changes nothing: what it allows is allowed without it"],
        ),
        ("causal | causal(-9)", (8, 8), ["Causal(offset=-9) changes nothing: it allows nothing at 8 x 8"]),
        (
            "causal & causal(-9)",
            (8, 8),
            [
                "the mask allows nothing at 8 x 8",
                "Causal(offset=-9) decides alone: it allows nothing at 8 x 8",
            ],
        ),
        (
            "causal | causal(9)",
            (8, 8),
            [
                "the mask allows everything at 8 x 8",
                "Causal(offset=9) decides alone: it allows everything at 8 x 8",
            ],
        ),
        (
            "query_mask([[true, true, false]]) | causal(-1)",
            (3, 3),
            [
                "QueryMask([[True, True, False]]) drops queries, not keys: query 0 of row 0 still attends to key 2; "
                "see KeyMask"
            ],
        ),
        ("causal & query_mask([[true, true, false]])", (3, 3), ["rows that may attend to nothing: q = 2"]),
        ("query_mask([[true, true, false]]) & full", (3, 4), ["rows that may attend to nothing: q = 2"]),
        (
            "~(causal & padding([2, 1]))",
            (3, 3),
            ["~ lets through what KeyPadding([2, 1]) drops: query 0 of row 0 attends to key 2; mask it again"],
        ),
        (
            "(~(causal(-1) & padding([2])) | window(1)) & padding([2])",
            (4, 4),
            ["rows that may attend to nothing: q = 3"],
        ),
        ("~padding([2])", (3, 3), []),
        ("causal", (1, 8), [TOP_LEFT.format("1 x 8", "1, 8")]),
        ("~causal & padding([4])", (2, 5), [TOP_LEFT.format("2 x 5", "2, 5")]),
        ("causal(7)", (1, 8), ["the mask allows everything at 1 x 8"]),
        ("causal(3)", (2, 5), []),
        ("causal.at(3)", (2, 5), []),
        ("causal.at([3])", (2, 5), []),
        ("causal.with_positions([[3, 4]], [[0, 1, 2, 3, 4]])", (2, 5), []),
    ],
)
def test_what_is_said(text, sizes, expected):
    assert masks.lint(masks.parse(text), *sizes) == expected


def test_sizes_that_conflict_are_refused():
    with pytest.raises(ValueError, match="expects batch 2, got 3"):
        masks.lint(masks.KeyPadding([1, 2]), 4, 4, batch=3)


def without(mask, part):
    """The expression with one operand of its outermost operator left out."""
    rest = [other for other in mask.parts if other is not part]
    return rest[0] if len(rest) == 1 else type(mask)(tuple(rest))


@settings(deadline=None, max_examples=150)
@given(shaped_expressions())
def test_small_sizes_are_judged_exactly(case):
    (batch, heads, q_len, kv_len), mask = case
    dense = mask.dense(q_len, kv_len, batch, heads)
    said = masks.lint(mask, q_len, kv_len, batch, heads)
    literal = isinstance(mask, (masks.Full, masks.Empty))
    size = f"{q_len} x {kv_len}"
    assert (f"the mask allows everything at {size}" in said) == (dense.all() and not literal)
    assert (f"the mask allows nothing at {size}" in said) == (not dense.any() and not literal)
    empty = ~dense.any(axis=3)
    assert any(s.startswith("rows that may attend to nothing") for s in said) == (empty.any() and dense.any())
    if isinstance(mask, (masks.And, masks.Or)) and dense.any() and not dense.all():
        spare = [p for p in mask.parts if (without(mask, p).dense(q_len, kv_len, batch, heads) == dense).all()]
        assert bool(spare) == any(
            s.startswith(f"{repr(p)[:77]}") and "changes nothing" in s for p in spare for s in said
        )


@pytest.mark.parametrize("seed", range(25))
def test_what_is_said_without_looking_at_pairs_is_also_said_with(seed):
    shape = Shape(2, 9, 9, 2, 1, 8, 8)
    mask = compose(shape, Draws(f"lint {seed}"), depth=3)
    sizes = (shape.q_len, shape.kv_len, shape.batch, shape.heads)
    sound, exact = masks.lint(mask, *sizes, budget=0), masks.lint(mask, *sizes)
    rows = "rows that may attend to nothing"
    assert {s for s in sound if not s.startswith(rows)} <= set(exact)
    if any(s.startswith(rows) for s in sound):
        assert not mask.dense(*sizes).any(axis=3).all()


def test_large_sizes_are_judged_by_tiles():
    n = 131072
    keep = np.arange(n)[None] % n != 7
    for text, expected in [
        ("causal & window(9000)", []),
        ("padding([0]) | empty", ["the mask allows nothing at 131072 x 131072"]),
        ("causal(131071)", ["the mask allows everything at 131072 x 131072"]),
        ("causal(-70)", ["rows that may attend to nothing: q = 0..69"]),
        ("prefix(3) & window(131071)", [f"SlidingWindow(131071): left=131071 never binds at {n} x {n}"]),
    ]:
        assert masks.lint(masks.parse(text), n, n) == expected
    found = masks.lint(masks.Causal() & masks.QueryMask(keep), n, n)
    assert found == ["rows that may attend to nothing: q = 7"]
