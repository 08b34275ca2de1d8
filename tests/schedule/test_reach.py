"""Rows that may attend to nothing, found by tiles, against the dense array, and in the memory that this is for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from maskattn import biases, masks
from maskattn.attention import refuse_empty_rows
from maskattn.parity.attention.cases import Shape, compose
from maskattn.parity.draws import Draws
from maskattn.schedule import reach
from tests.schedule.test_tiles import CLASSES

SHAPES = [Shape(2, 11, 17, 3, 3, 4, 4), Shape(4, 36, 36, 2, 2, 4, 4), Shape(1, 140, 270, 2, 2, 4, 4)]


def dense(mask, bias, sizes):
    """bool [B, H, L, S]: what may attend to what, a bias of -inf forbidding."""
    allowed = np.ones(sizes, bool)
    if mask is not None:
        allowed = mask.dense(sizes[2], sizes[3], *sizes[:2])
    if bias is not None:
        index = (np.arange(n).reshape([-1 if i == axis else 1 for i in range(4)]) for axis, n in enumerate(sizes))
        allowed = allowed & (bias.values(*index) != -np.inf)
    return allowed


def check(mask, bias, sizes):
    allowed = dense(mask, bias, sizes)
    empty = ~allowed.any(3)
    try:
        refuse_empty_rows(mask, bias, sizes, lambda array: array)
        assert not empty.any()
    except ValueError as error:
        first = tuple(int(i) for i in np.argwhere(empty)[0])
        assert str(error) == (
            f'attention: empty_rows="error": {int(empty.sum())} of {empty.size} rows may attend to no key; '
            f"the first is (batch, head, query) = {first}"
        )
    if bias is None and mask is not None:
        for found, expected in zip(reach.reached(mask, *sizes), (allowed.any(3), allowed.any(2)), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)


def some_biases(shape, draws):
    """Biases of every kind of axes, some with -inf here and there, in whole rows, or nowhere."""
    sizes = shape.scores
    for axes in ((1, 1, 0, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 0, 0, 0)):
        of = tuple(1 if one else size for one, size in zip(axes, sizes, strict=True))
        values = np.where(draws.booleans(of, 0.3), -np.inf, draws.normal(of)).astype(np.float32)
        yield biases.DenseBias(values)
        values = np.where(draws.booleans((*of[:3], 1), 0.1), -np.inf, values)
        yield biases.DenseBias(values)
    yield biases.ALiBi(shape.heads)
    yield biases.T5Buckets(np.where(draws.booleans((32, shape.heads)), -np.inf, 0.0))
    yield biases.Additive(masks.Causal())
    yield biases.DenseBias(np.array([[[[np.nan]]]]))


@pytest.mark.parametrize("pairs", [1, 1 << 19])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_keys_are_those_of_the_dense_array(monkeypatch, shape, pairs):
    monkeypatch.setattr(reach, "PAIRS", pairs)
    draws = Draws(f"reach/{shape}")
    given = [compose(shape, Draws(number), depth=number % 4) for number in range(20)]
    given += [mask for cls in CLASSES for mask in cls.examples(shape, draws)]
    for mask in given:
        check(mask, None, shape.scores)
    for bias in some_biases(shape, draws):
        for mask in (
            None,
            masks.Causal(-3),
            masks.Causal() & masks.KeyMask(draws.booleans((1, shape.kv_len))),
            *given[:6],
        ):
            check(mask, bias, shape.scores)


@pytest.mark.parametrize("sizes", [(1, 1, 0, 5), (1, 1, 5, 0), (0, 2, 5, 5), (2, 0, 5, 5)])
@pytest.mark.parametrize("bias", [None, biases.DenseBias(np.zeros((1, 1, 1, 1)))])
def test_lengths_of_zero(sizes, bias):
    check(None, bias, sizes)
    check(masks.Causal() & masks.Dense(np.ones((1, 1, 1, 1), bool)), bias, sizes)


def test_within_a_budget_what_is_said_is_true_and_what_is_not_known_is_said():
    mask = masks.Strided(3) & ~masks.QueryMask(np.arange(700)[None] % 60 == 7)
    empty, before = ~mask.dense(700, 700).any(3), 701
    for budget in (0, 1 << 15, 1 << 17, np.inf):
        rows, unknown = reach.known_rows(mask, 1, 1, 700, 700, budget)
        assert not (rows & empty).any() and not (~rows & ~unknown & ~empty).any() and not (rows & unknown).any()
        assert unknown.sum() < before
        before = unknown.sum()
    assert before == 0


LONG = 32768


@pytest.mark.parametrize(
    ("mask", "bias", "heads"),
    [
        (masks.Causal() & masks.SlidingWindow(300), None, 1),
        (masks.Strided(7) & masks.KeyPadding([9]), None, 1),
        (masks.Causal() & masks.KeyPadding([100]), biases.ALiBi(2), 2),
        (None, biases.Additive(masks.Causal() & masks.SlidingWindow(300)), 1),
    ],
    ids=["window", "strided and padded", "alibi", "additive"],
)
def test_no_array_of_all_pairs_is_made(mask, bias, heads):
    """A bool for each pair would be 1 GB a head."""
    tracemalloc.start()
    refuse_empty_rows(mask, bias, (1, heads, LONG, LONG), lambda array: array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_dense_mask_is_read_where_it_lies():
    keep = np.tri(4096, dtype=bool)[None, None]
    tracemalloc.start()
    refuse_empty_rows(masks.Dense(keep) & masks.SlidingWindow(20), None, (8, 32, 4096, 4096), lambda array: array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * keep.nbytes
