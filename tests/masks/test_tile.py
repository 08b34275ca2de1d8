from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import masks
from tests.masks.definitions import leaves, shaped_expressions, sizes

EXACT = ("full", "empty", "causal", "window", "prefix", "prefixes", "padding", "key", "query", "dense")


def random_tiles(rng, shape, count=12):
    """Tiles as arrays, some of them beyond the data."""
    batch, heads, q_len, kv_len = shape
    b, h = rng.integers(0, batch, count), rng.integers(0, heads, count)
    q_lo, k_lo = rng.integers(-2, q_len + 2, count), rng.integers(-2, kv_len + 2, count)
    return b, h, q_lo, q_lo + rng.integers(0, 4, count), k_lo, k_lo + rng.integers(0, 4, count)


def truth(mask, tiles):
    some, every = [], []
    for b, h, q_lo, q_hi, k_lo, k_hi in zip(*(t.tolist() for t in tiles), strict=True):
        inside = mask.allowed(b, h, np.arange(q_lo, q_hi + 1)[:, None], np.arange(k_lo, k_hi + 1))
        some.append(bool(inside.any()))
        every.append(bool(inside.all()))
    return np.array(some), np.array(every)


@settings(deadline=None, max_examples=250)
@given(shaped_expressions(), st.integers(0, 2**32 - 1))
def test_tile_is_sound(case, seed):
    shape, mask = case
    tiles = random_tiles(np.random.default_rng(seed), shape)
    some, every = mask.tile(*tiles)
    any_allowed, all_allowed = truth(mask, tiles)
    assert some.shape == every.shape == (12,) and some.dtype == every.dtype == bool
    assert (some >= any_allowed).all(), "called empty, but something in it is allowed"
    assert (every <= all_allowed).all(), "called full, but something in it is not allowed"


@pytest.mark.parametrize("kind", EXACT)
@settings(deadline=None, max_examples=30)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_tile_is_exact_for_intervals_and_arrays(kind, data, seed):
    shape = data.draw(sizes())
    mask = data.draw(leaves(shape, (kind,)))
    tiles = random_tiles(np.random.default_rng(seed), shape)
    for found, expected in zip(mask.tile(*tiles), truth(mask, tiles), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_tile_of_segments_is_exact_where_documents_are_packed_in_order(seed):
    rng = np.random.default_rng(seed)
    mask = masks.Segments(np.cumsum(rng.integers(0, 2, (2, 9)), axis=1))
    tiles = random_tiles(rng, (2, 1, 9, 9))
    for found, expected in zip(mask.tile(*tiles), truth(mask, tiles), strict=True):
        np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_a_full_tile_of_segments_is_always_recognised(data, seed):
    shape = data.draw(sizes())
    mask = data.draw(leaves(shape, ("segments", "cross_segments")))
    tiles = random_tiles(np.random.default_rng(seed), shape)
    np.testing.assert_array_equal(mask.tile(*tiles)[1], truth(mask, tiles)[1])


def test_combinations_are_as_tight_as_their_parts_allow():
    one, other = masks.SlidingWindow(0), masks.KeyPadding([4])
    assert (one | other).tile(0, 0, 0, 3, 0, 3) == (True, True)
    assert (one & other).tile(0, 0, 0, 3, 4, 7) == (False, False)
    assert (~one).tile(0, 0, 0, 3, 4, 7) == (True, True) and (~other).tile(0, 0, 0, 3, 0, 3) == (False, False)
