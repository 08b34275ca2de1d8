"""`Mask.rows`: an interval of keys for each query, and a tag, say what `allowed` says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import masks
from maskattn.parity.attention.case import Shape
from maskattn.parity.draws import Draws
from tests.frameworks import jnp, torch
from tests.masks.definitions import Even, shaped_expressions
from tests.masks.pattern_definitions import patterns

#: The masks that are one interval for each query, or the keys of a tag.
HAVE = ("BlockCausal", "Causal", "Chunked", "Empty", "Full", "KeyMask", "KeyPadding", "PerHead", "PrefixLM")
HAVE += ("QueryMask", "Segments", "SlidingWindow")
SHAPE = Shape(3, 11, 11, 4, 2, 8, 8)


def grid(shape, first=0):
    """(b, h, q, k) of rank 4, for queries and keys from `first` on, too."""
    ranges = [(0, shape[0]), (0, shape[1]), (first, shape[2] - first), (first, shape[3] - first)]
    axes = [np.arange(*each).reshape([-1 if i == axis else 1 for i in range(4)]) for axis, each in enumerate(ranges)]
    return tuple(axes)


def said(rows, k):
    """What rows allow, pair by pair."""
    allowed = np.ones((1, 1, 1, 1), bool)
    if rows.low is not None:
        allowed = allowed & (k >= rows.low)
    if rows.high is not None:
        allowed = allowed & (k < rows.high)
    if rows.q_tag is not None:
        allowed = allowed & (rows.q_tag == rows.k_tag)
    return np.asarray(allowed)


def check(mask, at):
    rows = mask.rows(*at)
    if rows is not None:
        np.testing.assert_array_equal(np.broadcast_to(said(rows, at[3]), mask.allowed(*at).shape), mask.allowed(*at))
        assert (rows.q_tag is None) == (rows.k_tag is None)
    return rows


def every_class():
    return [cls for name in masks.__all__ if isinstance(cls := getattr(masks, name), type) and cls is not masks.Mask]


def examples(cls):
    return [mask for seed in range(5) for mask in cls.examples(SHAPE, Draws(seed))]


def test_these_masks_have_rows_and_the_others_do_not():
    have = {
        cls.__name__ for cls in every_class() for mask in examples(cls) if check(mask, grid(SHAPE.scores)) is not None
    }
    assert have == set(HAVE)


@settings(deadline=None, max_examples=400)
@given(shaped_expressions())
def test_rows_of_expressions_say_what_is_allowed(case):
    shape, mask = case
    check(mask, grid(shape))
    check(mask, grid(shape, -3))


@settings(deadline=None, max_examples=100)
@given(patterns(("BlockCausal", "Chunked", "PerHead", "Segments", "KeyMask")), st.integers(-9, 9), st.integers(-9, 9))
def test_rows_of_patterns_that_are_moved(case, q_offset, k_offset):
    sizes, mask = case
    assert check(mask.at(q_offset, k_offset) & masks.SlidingWindow(3), grid(sizes.scores, -3)) is not None


def test_what_combines_and_what_does_not():
    ids, keep = np.array([[0, 0, 1, -1, 1]]), np.array([[True, False, True, True, True]])
    documents, kept, at = masks.Segments(ids), masks.KeyMask(keep), grid((1, 2, 5, 5), -1)
    causal = masks.Causal() & masks.SlidingWindow(2) & masks.Chunked(4) & masks.QueryMask(keep)
    for mask in (documents & kept & causal, kept & documents, kept & masks.KeyMask(~keep) & causal):
        assert check(mask, at) is not None
    assert check(masks.PerHead([causal & documents, kept]), at).k_tag.shape[1] == 2
    assert check(documents & masks.Segments(ids[:, ::-1]), at) is None
    for mask in (masks.Causal() | kept, ~masks.Causal(), masks.Causal() & masks.Strided(2), Even() & masks.Causal()):
        assert check(mask, at) is None
    assert check(masks.PerHead([masks.Causal(), masks.Strided(2)]), at) is None


def test_a_mask_that_is_changed_does_not_have_the_rows_of_what_it_was():
    @dataclass(frozen=True)
    class Open(masks.Causal):
        def allowed(self, b, h, q, k):
            return (k <= q + self.offset) | (k == 0)

    @dataclass(frozen=True)
    class Same(masks.Causal):
        pass

    assert check(Open(), grid((1, 1, 3, 3))) is None and check(Same(), grid((1, 1, 3, 3))) is not None


@pytest.mark.parametrize("name", HAVE)
def test_rows_in_each_framework(name):
    for mask in examples(getattr(masks, name)):
        expected, at = mask.rows(*grid(SHAPE.scores)), grid(SHAPE.scores)
        for array in (torch.as_tensor, jnp.asarray):
            found = mask.map_data(array).rows(*(array(x) for x in at))
            for one, other in zip(found, expected, strict=True):
                assert (one is None) == (other is None)
                assert one is None or np.array_equal(np.asarray(one), other)
