"""Bad input: one error, which names the argument, what was expected and what came."""

from __future__ import annotations

import numpy as np
import pytest

from maskattn import masks
from tests.masks.pattern_inputs import BAD as PATTERNS

BAD = [
    (lambda: masks.Causal(1.0), TypeError, r"Causal: offset must be an int, got 1\.0 \(float\)"),
    (lambda: masks.Causal(True), TypeError, r"offset must be an int, got True"),
    (
        lambda: masks.Causal.end_aligned(-1, 2.5),
        TypeError,
        r"q_len must be at least 0, got -1\n  - kv_len must be",
    ),
    (lambda: masks.SlidingWindow(-1, -2), ValueError, r"left .*None = unbounded.* got -1\n  - right .* got -2"),
    (lambda: masks.SlidingWindow("4"), TypeError, r"left .* must be an int, got '4'"),
    (lambda: masks.PrefixLM(-1), ValueError, r"prefix must be at least 0, got -1"),
    (lambda: masks.PrefixLM([1, -2]), ValueError, r"prefix must not be negative, got -2"),
    (lambda: masks.PrefixLM([[1]]), ValueError, r"prefix must have shape \[B\], got \[1, 1\]"),
    (lambda: masks.PrefixLM(None), TypeError, r"prefix must be an int, got None"),
    (lambda: masks.KeyPadding(3), ValueError, r"lengths must have shape \[B\], got \[\]"),
    (lambda: masks.KeyPadding([[1], [2]]), ValueError, r"lengths must have shape \[B\], got \[2, 1\]"),
    (lambda: masks.KeyPadding([1.0, 2.0]), TypeError, r"lengths must be an int array, got dtype float64"),
    (lambda: masks.KeyPadding([3, -1]), ValueError, r"lengths must not be negative, got -1"),
    (lambda: masks.KeyPadding([True, False]), TypeError, r"lengths must be an int array, got dtype bool"),
    (lambda: masks.KeyPadding([[1], [2, 3]]), ValueError, r"lengths must be an int array \[B\], got a ragged list"),
    (lambda: masks.KeyPadding(np.array([2**64 - 1], np.uint64)), ValueError, r"must fit in int64"),
    (lambda: masks.KeyMask([True]), ValueError, r"keep must have shape \[B, S\], got \[1\]"),
    (lambda: masks.KeyMask([[1, 0]]), TypeError, r"got dtype int64; an array of 0 and 1\? keep.astype\(bool\)"),
    (lambda: masks.QueryMask([[1.0, 0.0]]), TypeError, r"got dtype float64; an array of 0 and 1\? keep.astype\(bool\)"),
    (lambda: masks.KeyMask([[2, 0]]), TypeError, r"keep must be a bool array, got dtype int64$"),
    (lambda: masks.QueryMask(np.ones((1, 1, 1), bool)), ValueError, r"keep must have shape \[B, L\]"),
    (lambda: masks.Dense(np.ones((1, 1, 1, 1, 1), bool)), ValueError, r"keep must have shape broadcastable to \[B, H"),
    (
        lambda: masks.Dense(np.zeros((2, 2))),
        TypeError,
        r"keep must be a bool array, got dtype float64; an array of 0 and 1\?",
    ),
    (lambda: masks.Segments([[0.5]]), TypeError, r"q_ids must be an int array, got dtype float64"),
    (
        lambda: masks.Segments([0], [[0.5]]),
        TypeError,
        r"q_ids must have shape \[B, L\], got \[1\]\n  - k_ids must be an int",
    ),
    (lambda: masks.Segments([[0], [1]], [[0], [1], [2]]), ValueError, r"one batch, got 2 and 3"),
    (lambda: masks.Segments.from_sizes([1, -1]), ValueError, r"q_sizes must not be negative, got -1"),
    (lambda: masks.Segments.from_sizes([1, 1], [2]), ValueError, r"one size per document is needed"),
    (lambda: masks.Segments.from_cu_seqlens([1, 2]), ValueError, r"cu_seqlens_q must start at 0 and not decrease"),
    (lambda: masks.Segments.from_cu_seqlens([0, 2], [0, 2, 1]), ValueError, r"cu_seqlens_k must start at 0"),
    (lambda: masks.Segments.from_cu_seqlens([0, 2], q_len=1), ValueError, r"q_len must be at least 2, where the last"),
    (lambda: masks.Segments.from_cu_seqlens([0, 2], kv_len=2), ValueError, r"kv_len is that of cu_seqlens_k"),
    (lambda: masks.ShiftedWindow(4, 2, 1), TypeError, r"grid must be a tuple of ints, got 4"),
    (lambda: masks.ShiftedWindow((), 2, 1), ValueError, r"grid must have at least one axis"),
    (
        lambda: masks.ShiftedWindow((4, 5), 2, 2),
        ValueError,
        r"grid must be a multiple .*\n  - shift must be at",
    ),
    (lambda: masks.ShiftedWindow((4, 4), (2, 2, 2), 1), ValueError, r"window must have 2 entries, got 3"),
    (lambda: masks.ShiftedWindow((4, 4), 0, 0), ValueError, r"window must be at least 1, got 0"),
    (lambda: masks.WindowPartition((4, 4), 2, -1), ValueError, r"shift must be at least 0 and less than window"),
    (lambda: masks.WindowPartition((4, 4), 2, 0.5), TypeError, r"shift must be an int, got 0\.5"),
    *PATTERNS,
]


@pytest.mark.parametrize("make, error, message", BAD)
def test_constructors_name_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_every_constructor_with_arguments_is_in_the_list():
    without_checks = {"Full", "Empty", "And", "Or", "Not", "At", "Positioned", "Stored", "Mask"}
    named = {name for name in masks.__all__ if isinstance(getattr(masks, name), type)} - without_checks
    tried = {name for name in named for make, _, _ in BAD if name in make.__code__.co_names}
    assert tried == named


def test_data_are_taken_as_lists_and_as_any_integer():
    assert masks.KeyPadding(np.array([1, 3], np.uint8)) == masks.KeyPadding([1, 3])
    assert masks.KeyPadding(np.array([1, 3], ">i8")) == masks.KeyPadding([1, 3])
    assert masks.KeyPadding([]).sizes() == {"batch": 0}
    assert masks.ShiftedWindow([4, 4], (2, 2), np.int64(1)) == masks.ShiftedWindow((4, 4), 2, (1, 1))
