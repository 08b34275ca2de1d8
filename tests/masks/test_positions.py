from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import masks
from tests.masks.definitions import RELATIONAL, SLOTS, leaves, shaped_expressions, sizes

SHAPE = (2, 1, 6, 6)


@settings(deadline=None, max_examples=100)
@given(shaped_expressions(), st.data())
def test_at_reads_a_block_of_the_same_mask(case, data):
    (batch, heads, q_len, kv_len), mask = case
    q_at, k_at = data.draw(st.integers(0, q_len - 1)), data.draw(st.integers(0, kv_len - 1))
    whole = mask.dense(q_len, kv_len, batch, heads)
    moved = mask.at(q_at, k_at).dense(q_len - q_at, kv_len - k_at, batch, heads)
    np.testing.assert_array_equal(moved, whole[:, :, q_at:, k_at:])
    steps = [mask.at(q_offset=t).dense(1, kv_len, batch, heads) for t in range(q_len)]
    np.testing.assert_array_equal(np.concatenate(steps, axis=2), whole)


@settings(deadline=None, max_examples=60)
@given(shaped_expressions(), st.integers(0, 2**32 - 1))
def test_offsets_per_row_are_each_rows_offset(case, seed):
    (batch, heads, q_len, kv_len), mask = case
    q_by, k_by = np.random.default_rng(seed).integers(-3, 4, (2, batch))
    found = mask.at(q_by, k_by).dense(q_len, kv_len, batch, heads)
    for b in range(batch):
        q, k = np.arange(q_len)[:, None] + q_by[b], np.arange(kv_len) + k_by[b]
        np.testing.assert_array_equal(found[b, 0], mask.allowed(b, 0, q, k))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_positions_counted_from_zero_change_nothing(data):
    shape = data.draw(sizes())
    mask = data.draw(leaves(shape))
    batch, heads, q_len, kv_len = shape
    given_positions = mask.with_positions(np.arange(q_len)[None], np.arange(kv_len)[None])
    np.testing.assert_array_equal(
        given_positions.dense(q_len, kv_len, batch, heads), mask.dense(q_len, kv_len, batch, heads)
    )


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_permuted_positions_permute_relational_masks_and_leave_slots_alone(data, seed):
    batch, _, q_len, kv_len = SHAPE
    relation = data.draw(leaves(SHAPE, RELATIONAL))
    slots = data.draw(leaves(SHAPE, SLOTS))
    rng = np.random.default_rng(seed)
    q_pos, k_pos = rng.permuted(np.tile(np.arange(6), (2, 2, 1)), axis=2)
    expected = np.stack([relation.dense(6, 6, 2)[b][:, q_pos[b]][:, :, k_pos[b]] for b in range(2)])
    np.testing.assert_array_equal(relation.with_positions(q_pos, k_pos).dense(6, 6, 2), expected)
    both = (relation & ~slots).with_positions(q_pos, k_pos)
    np.testing.assert_array_equal(both.dense(6, 6, 2), expected & ~slots.dense(6, 6, 2))


def test_a_rolling_cache():
    """Slot s holds position 6, 7, 8, 5 (4 slots); the token at 8 with a window of 2 before it sees 6, 7 and 8."""
    mask = (masks.Causal() & masks.SlidingWindow(2)).with_positions([[8]], [[6, 7, 8, 5]])
    assert mask.dense(1, 4)[0, 0, 0].tolist() == [True, True, True, False]


def test_moved_slots_stay_moved_when_positions_are_given():
    keep = np.array([[True, False, True, True, False]])
    mask = (masks.Causal() & masks.KeyMask(keep)).at(q_offset=3, k_offset=1).with_positions([[0, 9]], [[0, 1, 2]])
    assert mask.dense(2, 3)[0, 0].tolist() == [[False, False, False], [False, True, True]]
    again = mask.with_positions([[9, 9]], [[0, 1, 2]])
    assert again.dense(2, 3)[0, 0].tolist() == [[False, True, True]] * 2


def test_offsets_add_up():
    mask = masks.Causal() & masks.KeyMask(np.ones((1, 4), bool))
    assert mask.at(1, 2).at(3, -2) == mask.at(q_offset=4)
    assert mask.at(2, 1).at(-2, -1) == mask.at()
    assert masks.Full().at(3, 3) == masks.Full()
    assert masks.Causal().at(1, 1).dense(3, 3).tolist() == masks.Causal().dense(3, 3).tolist()
    assert hash(masks.Causal().at(3)) == hash(masks.Causal().at(3)) != hash(masks.Causal().at(4))


def test_shards_of_the_keys_need_not_hold_all_the_lengths():
    mask = masks.KeyPadding([9, 3])
    shards = [mask.at(k_offset=start).dense(1, 4) for start in (0, 4, 8)]
    assert [shard[:, 0, 0].sum(-1).tolist() for shard in shards] == [[4, 3], [4, 0], [1, 0]]


def test_a_block_may_not_exceed_the_data_it_starts_with():
    keep = masks.KeyMask(np.ones((1, 5), bool))
    assert keep.at(q_offset=3).dense(1, 4).all() and not keep.at(k_offset=3).dense(1, 4).all()
    with pytest.raises(ValueError, match="expects kv_len 5, got 6"):
        keep.at(q_offset=3).dense(1, 6)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda m: m.at(1.5), TypeError, r"at: q_offset must be an int, got 1\.5"),
        (lambda m: m.at(0, np.zeros((2, 2), int)), ValueError, r"k_offset must have shape \[\] or \[B\], got \[2, 2\]"),
        (lambda m: m.at(np.zeros(2)), TypeError, r"q_offset must be an int array, got dtype float64"),
        (
            lambda m: m.with_positions([0], [[0.5]]),
            TypeError,
            r"q_pos must have shape \[B, L\].*\n  - k_pos must be an int",
        ),
        (
            lambda m: m.with_positions(np.zeros((2, 3), int), np.zeros((3, 3), int)),
            ValueError,
            "one batch, got 2 and 3",
        ),
    ],
)
def test_bad_offsets_and_positions_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make(masks.Causal())
