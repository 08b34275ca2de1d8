from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import masks
from tests.masks.definitions import RELATIONAL, SLOTS, Even, brute, leaves, pair, shaped_expressions, sizes


@pytest.mark.parametrize("kind", RELATIONAL + SLOTS)
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_dense_is_the_definition(kind, data):
    shape = data.draw(sizes())
    mask = data.draw(leaves(shape, (kind,)))
    batch, heads, q_len, kv_len = shape
    dense = mask.dense(q_len, kv_len, batch, heads)
    assert dense.dtype == bool and dense.shape == shape
    np.testing.assert_array_equal(dense, brute(mask, *shape))


@settings(deadline=None, max_examples=150)
@given(shaped_expressions())
def test_dense_of_expressions_is_the_definition(case):
    (batch, heads, q_len, kv_len), mask = case
    np.testing.assert_array_equal(mask.dense(q_len, kv_len, batch, heads), brute(mask, batch, heads, q_len, kv_len))


@settings(deadline=None, max_examples=100)
@given(shaped_expressions(), st.integers(0, 2**32 - 1))
def test_allowed_takes_any_broadcasting_indices_also_outside_the_data(case, seed):
    (batch, heads, q_len, kv_len), mask = case
    rng = np.random.default_rng(seed)
    b, h = rng.integers(0, batch, (3, 1, 1)), rng.integers(0, heads, (1, 1))
    q, k = rng.integers(-2, q_len + 2, (4, 1)), rng.integers(-2, kv_len + 2, 5)
    found = mask.allowed(b, h, q, k)
    assert found.shape == (3, 4, 5) and found.dtype == bool
    expected = [pair(mask, *(int(i) for i in at)) for at in np.broadcast(b, h, q, k)]
    assert found.ravel().tolist() == expected
    for index in np.ndindex(3, 4, 5):
        at = [int(np.broadcast_to(i, (3, 4, 5))[index]) for i in (b, h, q, k)]
        assert bool(mask.allowed(*at)) == found[index]


@settings(deadline=None, max_examples=60)
@given(shaped_expressions())
def test_what_a_mask_does_not_depend_on_changes_nothing(case):
    (batch, heads, q_len, kv_len), mask = case
    dense = mask.dense(q_len, kv_len, batch, heads)
    for axis, name in enumerate("bhqk"):
        if name not in mask.depends:
            assert (dense == dense.take([0], axis=axis)).all()


def test_sizes_come_from_the_data():
    mask = masks.KeyPadding([1, 4, 2]) & masks.Dense(np.ones((1, 2, 1, 1), bool))
    assert mask.sizes() == {"batch": 3, "heads": 2}
    assert mask.dense(5, 4).shape == (3, 2, 5, 4)
    assert masks.Causal().dense(0, 3).shape == (1, 1, 0, 3)
    assert masks.KeyMask(np.ones((2, 0), bool)).dense(2, 0).shape == (2, 1, 2, 0)
    assert not masks.KeyMask(np.ones((2, 0), bool)).allowed(0, 0, np.arange(2)[:, None], np.arange(3)).any()


@pytest.mark.parametrize(
    "mask, sizes, message",
    [
        (masks.KeyMask(np.ones((2, 7), bool)), (5, 9), r"KeyMask.* expects kv_len 7, got 9"),
        (masks.QueryMask(np.ones((1, 7), bool)), (5, 9), r"QueryMask.* expects q_len 7, got 5"),
        (masks.QueryMask(np.ones((1, 1), bool)), (5, 9), r"QueryMask.* expects q_len 1, got 5"),
        (masks.Segments(np.zeros((2, 5), int)), (5, 9, 3), r"batch 2, got 3\n.*kv_len 5, got 9"),
        (masks.Dense(np.ones((3, 1, 1), bool)), (5, 9, 1, 2), r"Dense.* expects heads 3, got 2"),
        (masks.KeyPadding([1, 10]), (5, 9), r"lengths up to kv_len 9, got 10"),
        (~(masks.Causal() | masks.KeyPadding([1, 10])), (5, 9), r"lengths up to kv_len 9, got 10"),
        (masks.PrefixLM([1, 2]), (5, 9, 4), r"PrefixLM.* expects batch 2, got 4"),
        (masks.KeyPadding([1, 2]) & masks.PrefixLM([1, 2, 3]), (5, 9), r"batch is 2 in KeyPadding.* but 3 in PrefixLM"),
        (masks.Causal().at(np.arange(3)), (5, 9, 2), r"expects batch 3, got 2"),
        (masks.KeyMask(np.ones((2, 7), bool)).at(q_offset=1), (5, 9), r"expects kv_len 7, got 9"),
        (masks.Causal().with_positions([[0, 1]], [[0, 1, 2]]), (3, 3), r"expects q_len 2, got 3"),
        (masks.Causal(), (-1, 3), r"q_len must be at least 0, got -1"),
        (masks.WindowPartition((4, 4), 2), (16, 8), r"expects kv_len 16, got 8"),
        (masks.ShiftedWindow((4, 4), 2, 1), (4, 4, 6), r"a batch that is a multiple of 4, got 6"),
    ],
)
def test_sizes_that_conflict_with_the_data_are_named(mask, sizes, message):
    with pytest.raises(ValueError, match=message):
        mask.dense(*sizes)


def test_a_mask_of_the_users_own():
    mask = Even() & masks.Causal()
    assert mask == Even(2) & masks.Causal() and hash(mask) == hash(Even(2) & masks.Causal())
    np.testing.assert_array_equal(mask.dense(3, 3)[0, 0], [[1, 0, 0], [0, 1, 0], [1, 0, 1]])
    assert mask.tile(0, 0, 0, 0, 1, 2) == (False, False)
    assert Even().tile(0, 0, 0, 0, 1, 2) == (True, False)
    assert Even().allowed(np.zeros((2, 1), int), 0, 0, np.arange(3)).shape == (2, 3)


def test_why_says_which_part_decides():
    text = (masks.Causal() & ~masks.KeyPadding([1])).why(0, 0, 1, 2)
    assert text.splitlines() == [
        "query 1 may not attend to key 2 (batch row 0, head 0)",
        "  Causal() & ~KeyPadding([1]) forbids it:",
        "    Causal() forbids it: 2 <= 1 + 0 is false (k <= q + offset)",
        "    ~KeyPadding([1]) allows it:",
        "      KeyPadding([1]) forbids it: 0 <= 2 < 1 is false (0 <= k < lengths[b])",
    ]


def test_segments_of_ragged_batches():
    mask = masks.Segments.from_sizes([2, 0, 1], [1, 1, 2])
    assert mask.q_ids.tolist() == [[0, 0, 2]] and mask.k_ids.tolist() == [[0, 1, 2, 2]]
    assert masks.Segments.from_cu_seqlens([0, 2, 2, 3], np.array([0, 1, 2, 4], np.int32)) == mask
    assert masks.Segments.from_sizes([2, 3]).k_ids is None
    padded = masks.Segments.from_cu_seqlens([0, 2, 2, 3], [0, 1], q_len=5, kv_len=2)
    assert padded.q_ids.tolist() == [[0, 0, 2, -1, -1]] and padded.k_ids.tolist() == [[0, -1]]


def test_end_aligned_gives_the_last_query_every_key():
    assert masks.Causal.end_aligned(2, 5) == masks.Causal(3) and masks.Causal.end_aligned(5, 2) == masks.Causal(-3)
    assert masks.Causal.end_aligned(2, 4).dense(2, 4)[0, 0].tolist() == [[True, True, True, False], [True] * 4]


@pytest.mark.parametrize(
    "mask",
    [
        masks.KeyPadding([3, 3]),
        masks.KeyMask(np.ones((2, 3), bool)),
        masks.QueryMask(np.ones((2, 3), bool)),
        masks.Segments(np.zeros((2, 3), int)),
        masks.Dense(np.ones((2, 2, 3, 3), bool)),
        masks.Causal().with_positions(*np.zeros((2, 2, 3), int)),
    ],
    ids=repr,
)
def test_rows_and_slots_outside_the_data_are_not_allowed(mask):
    index = np.arange(-1, 4)
    found = mask.allowed(index[:, None, None], 0, index[:, None], index)
    inside = (index >= 0) & (index < 3) if "q" in mask.depends else np.ones(5, bool)
    keys = (index >= 0) & (index < 3) if "k" in mask.depends else np.ones(5, bool)
    rows = (index >= 0) & (index < 2)
    np.testing.assert_array_equal(found, rows[:, None, None] & inside[:, None] & keys)
    some, every = mask.tile(index, 0, 0, 2, 0, 2)
    assert some.tolist() == every.tolist() == rows.tolist()
