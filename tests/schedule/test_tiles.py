"""The schedule of tiles against the dense mask, for every mask the library has."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from maskattn import masks
from maskattn.parity.attention.cases import Shape
from maskattn.parity.attention.cases.mask_table import families
from maskattn.parity.draws import Draws
from maskattn.schedule import EMPTY, FULL, MIXED, Schedule, empty_rows, reached
from tests.frameworks import jax, jnp, torch

CLASSES = list(families().values())
SHAPES = [(4, 24, 24, 2), (2, 11, 17, 3), (4, 36, 36, 2), (1, 13, 5, 1), (2, 7, 1, 1), (1, 1, 1, 1)]


def truth(mask, shape, q_block, kv_block):
    """States from the dense mask, tile by tile."""
    dense = mask.dense(shape.q_len, shape.kv_len, shape.batch, shape.heads)
    q_tiles, kv_tiles = -(-shape.q_len // q_block), -(-shape.kv_len // kv_block)
    found = np.empty((shape.batch, shape.heads, q_tiles, kv_tiles), np.int8)
    for i in range(q_tiles):
        for j in range(kv_tiles):
            part = dense[:, :, i * q_block : (i + 1) * q_block, j * kv_block : (j + 1) * kv_block]
            some, every = part.any((2, 3)), part.all((2, 3))
            found[:, :, i, j] = np.where(every, FULL, np.where(some, MIXED, EMPTY))
    return dense, found


def check(mask, shape, q_block, kv_block):
    dense, states = truth(mask, shape, q_block, kv_block)
    sizes = (shape.batch, shape.heads, shape.q_len, shape.kv_len)
    bounds = Schedule.of(mask, *sizes, q_block, kv_block)
    found = np.broadcast_to(bounds.states(), states.shape)
    assert ((found == EMPTY) <= (states == EMPTY)).all(), "called empty, but something in it is allowed"
    assert ((found == FULL) <= (states == FULL)).all(), "called full, but something in it is not allowed"
    decided = Schedule.of(mask, *sizes, q_block, kv_block, exact=True)
    np.testing.assert_array_equal(np.broadcast_to(decided.states(), states.shape), states)
    assert decided.indptr[0] == 0 and decided.indptr[-1] == len(decided.indices) == len(decided.full)
    for b, h, i in np.ndindex(states.shape[:3]):
        indices, full = decided.row(b, h, i)
        np.testing.assert_array_equal(indices, np.flatnonzero(states[b, h, i]))
        np.testing.assert_array_equal(full, states[b, h, i, indices] == FULL)
    expected = ~dense.any(-1)
    np.testing.assert_array_equal(np.broadcast_to(empty_rows(mask, *sizes), expected.shape), expected)
    keys = dense.any(-2)
    np.testing.assert_array_equal(np.broadcast_to(reached(mask, *sizes)[1], keys.shape), keys)


def test_every_mask_of_the_library_is_tried():
    assert {"Causal", "SlidingWindow", "Dense", "Segments", "ShiftedWindow"} <= {cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_schedule_is_sound_and_where_asked_exact(cls):
    tried = 0
    for number, (batch, q_len, kv_len, heads) in enumerate(SHAPES):
        shape = Shape(batch, q_len, kv_len, heads, heads, 4, 4)
        for mask in cls.examples(shape, Draws(f"tiles/{cls.__name__}/{number}")):
            check(mask, shape, *((2, 3), (5, 4), (1, 1), (16, 32))[tried % 4])
            tried += 1
    assert tried, "no example fits any shape"


def test_compositions_and_moved_masks():
    shape = Shape(2, 19, 23, 2, 2, 4, 4)
    rng = np.random.default_rng(0)
    keep = masks.Dense(rng.random((1, 2, 19, 23)) < 0.5)
    window = masks.SlidingWindow(6, 2)
    for mask in (
        (masks.Causal(4) & masks.KeyPadding([23, 9])) | masks.PrefixLM(3),
        ~(window | masks.KeyMask(rng.random((2, 23)) < 0.8)),
        (window & keep).at(0, 0) | masks.Causal().at(np.array([-30, 5])),
        window.with_positions(rng.permutation(19)[None], rng.permutation(23)[None]),
    ):
        check(mask, shape, 3, 4)


@pytest.mark.parametrize("sizes", [(1, 1, 0, 5), (1, 1, 5, 0), (0, 2, 5, 5), (2, 0, 5, 5)])
def test_lengths_of_zero(sizes):
    found = Schedule.of(masks.Causal() & masks.Dense(np.ones((1, 1, 1, 1), bool)), *sizes, 2, 2)
    assert found.counts["full"] == found.counts["mixed"] == 0 and 0 <= found.skipped <= 1
    assert found.states().shape == (found.batch, found.heads, found.q_tiles, found.kv_tiles)
    rows = empty_rows(masks.Causal(), *sizes)
    assert rows.shape[-1] == sizes[2] and rows.all()


def test_a_long_window_costs_neither_the_matrix_nor_its_tiles():
    n = 1 << 20  # 8192 x 8192 tiles, 2^40 pairs
    mask = masks.Causal() & masks.SlidingWindow(300)
    tracemalloc.start()
    found = Schedule.of(mask, 1, 1, n, n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    # each row has the tiles 0 to 3 places before the diagonal, where they exist; one place before it is full
    assert found.counts == {"empty": 8192**2 - 4 * 8192 + 6, "mixed": 3 * 8192 - 5, "full": 8192 - 1}
    assert found.row(0, 0, 5)[0].tolist() == [2, 3, 4, 5] and found.row(0, 0, 5)[1].tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert found.row(0, 0, 0)[0].tolist() == [0]


def test_axes_that_the_mask_does_not_read_stay_at_one():
    found = Schedule.of(masks.Causal(), 8, 4, 64, 64, 16, 16)
    assert (found.batch, found.heads) == (1, 1) and found.counts == {"empty": 6, "mixed": 4, "full": 6}
    assert found.skipped == 6 / 16 and found.row(7, 3, 1)[0].tolist() == [0, 1]
    per_row = Schedule.of(masks.KeyPadding([3, 64]), None, None, 64, 64, 16, 16)
    assert (per_row.batch, per_row.heads) == (2, 1)
    assert per_row.row(0, 3, 2)[0].tolist() == [0] and per_row.row(1, 0, 2)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("asarray", [jnp.asarray, torch.as_tensor])
def test_data_of_the_frameworks(asarray):
    mask = masks.KeyPadding(asarray(np.array([5, 9]))) & masks.Causal()
    same = masks.KeyPadding([5, 9]) & masks.Causal()
    sizes = (2, 1, 9, 9, 4, 4)
    np.testing.assert_array_equal(Schedule.of(mask, *sizes).states(), Schedule.of(same, *sizes).states())


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Schedule.of(np.ones((3, 3), bool), 1, 1, 3, 3), TypeError, "mask must be a Mask, got ndarray"),
        (
            lambda: Schedule.of(masks.Full(), 1, 1, 3, 3, 0, 2.5),
            TypeError,
            "q_block must be at least 1, got 0(.|\n)*kv_block",
        ),
        (lambda: Schedule.of(masks.KeyMask([[True]]), 1, 1, 3, 3), ValueError, "expects kv_len 1, got 3"),
        (lambda: Schedule.of(masks.Full(), 1, 1, -3, 3), ValueError, "q_len must be at least 0"),
        (
            lambda: jax.jit(lambda x: Schedule.of(masks.KeyPadding(x), 1, 1, 3, 3).full)(np.array([2])),
            ValueError,
            r"schedule: the data of KeyPadding\(int32\[1\]\) are traced",
        ),
        (
            lambda: torch.func.vmap(lambda x: empty_rows(masks.KeyPadding(x), 1, 1, 3, 3))(torch.ones(2, 1).int()),
            ValueError,
            "empty_rows: the data of KeyPadding.* are traced",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
