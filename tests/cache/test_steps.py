"""What a cache says of masks, without a framework: the rest is in tests/twins/test_cache.py."""

from __future__ import annotations

import numpy as np
import pytest

from maskattn import masks
from maskattn.cache._steps import at_step, last, lookback, reaches_lost

CAUSAL, WINDOW = masks.Causal(), masks.SlidingWindow(3)


def test_the_last_token_sees_every_key_that_is_there():
    assert last(CAUSAL) == last(CAUSAL & masks.Causal(2)) == masks.Full()
    assert last(CAUSAL & WINDOW) == WINDOW
    for mask in (masks.Causal(-1), CAUSAL | WINDOW, ~CAUSAL):
        assert last(mask) == mask


def test_masks_of_keys_alone_stay_as_they_are():
    padding = masks.KeyPadding([3, 2])
    assert at_step(padding, np.array([4, 5]), 8) is padding
    assert "at(" not in repr(at_step(masks.Full(), np.array([4, 5]), 8))


@pytest.mark.parametrize(
    "mask", [CAUSAL & WINDOW, ~CAUSAL, masks.KeyMask(np.ones((2, 6), bool)), masks.Global([True] * 6)]
)
def test_a_step_is_its_rows_of_the_whole(mask):
    start = np.array([2, 4])
    found = at_step(mask, start, 8).dense(2, 8, 2)
    whole = mask.at(k_offset=np.array(0)).dense(6, 8, 2)
    for row, first in enumerate(start):
        np.testing.assert_array_equal(found[row], whole[row, :, first : first + 2])


def test_how_far_back_a_window_reaches():
    assert lookback(CAUSAL & WINDOW) == lookback(WINDOW & masks.SlidingWindow(5, 1)) == 3
    assert lookback(CAUSAL) is lookback(WINDOW | CAUSAL) is None


@pytest.mark.parametrize("mask", [WINDOW & CAUSAL, masks.Chunked(4) & CAUSAL, masks.Dilated(2, 2), CAUSAL])
def test_what_is_no_longer_held_is_missed(mask):
    tokens, lost = np.array([[5, 6, 7, 8, -1]] * 3), np.array([0, 3, 4])
    found = reaches_lost(mask, tokens, lost, np.arange)
    whole = mask.dense(9, 9)[0, 0]
    for row, gone in enumerate(lost):
        expected = [token >= 0 and bool(whole[token, :gone].any()) for token in tokens[row]]
        assert (found[row] >= expected).all()
        if not isinstance(mask, masks.Dilated):  # whose bounds are loose
            assert found[row].tolist() == expected


def test_a_mask_without_bounds_is_told_apart():
    class Every(masks.Mask):
        def allowed(self, b, h, q, k):
            return k <= q

    assert reaches_lost(Every(), np.array([[5]]), np.array([1]), np.arange) is None
    assert reaches_lost(Every() | CAUSAL, np.array([[5]]), np.array([1]), np.arange) is None
