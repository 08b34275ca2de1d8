from __future__ import annotations

import itertools

import numpy as np
import pytest

from maskattn import masks
from tests.masks.definitions import brute

GRIDS = [((4, 6), (2, 3), (1, 1)), ((6, 6), (3, 3), (1, 2)), ((4, 4), (4, 4), (2, 2)), ((4, 4), (2, 2), (0, 1))]
GRIDS += [((8, 4), (4, 2), (2, 0)), ((6,), (3,), (2,)), ((2, 4, 4), (2, 2, 2), (1, 1, 0)), ((4, 6), (2, 3), (0, 0))]


def by_regions(grid, window, shift):
    """Swin's own way: number the regions of the rolled grid, cut them into windows, compare numbers."""
    numbers = np.zeros(grid, int)
    cuts = [
        (slice(0, n - w), slice(n - w, n - s), slice(n - s, n)) for n, w, s in zip(grid, window, shift, strict=True)
    ]
    for number, region in enumerate(itertools.product(*cuts)):
        numbers[region] = number
    split = [size for n, w in zip(grid, window, strict=True) for size in (n // w, w)]
    rank = len(grid)
    order = [2 * i for i in range(rank)] + [2 * i + 1 for i in range(rank)]
    windows = numbers.reshape(split).transpose(order).reshape(-1, int(np.prod(window)))
    return windows[:, :, None] == windows[:, None, :]


def windows_of_flat(grid, window, shift):
    """[windows, tokens]: the flat position of each token of each window of the rolled grid."""
    flat = np.roll(np.arange(np.prod(grid)).reshape(grid), [-s for s in shift], tuple(range(len(grid))))
    split = [size for n, w in zip(grid, window, strict=True) for size in (n // w, w)]
    rank = len(grid)
    order = [2 * i for i in range(rank)] + [2 * i + 1 for i in range(rank)]
    return flat.reshape(split).transpose(order).reshape(-1, int(np.prod(window)))


@pytest.mark.parametrize("grid, window, shift", GRIDS)
def test_shifted_window_is_swins_mask(grid, window, shift):
    expected = by_regions(grid, window, shift)
    mask = masks.ShiftedWindow(grid, window, shift)
    size = expected.shape[-1]
    np.testing.assert_array_equal(mask.dense(size, size)[:, 0], expected)
    np.testing.assert_array_equal(mask.dense(size, size, 3 * len(expected))[:, 0], np.tile(expected, (3, 1, 1)))
    np.testing.assert_array_equal(brute(mask, len(expected), 1, size, size)[:, 0], expected)


@pytest.mark.parametrize("grid, window, shift", GRIDS)
def test_the_flat_grid_has_the_same_pattern(grid, window, shift):
    order = windows_of_flat(grid, window, shift)
    n = order.size
    expected = np.zeros((n, n), bool)
    for tokens, allowed in zip(order, by_regions(grid, window, shift), strict=True):
        expected[np.ix_(tokens, tokens)] = allowed
    mask = masks.WindowPartition(grid, window, shift)
    np.testing.assert_array_equal(mask.dense(n, n)[0, 0], expected)
    np.testing.assert_array_equal(brute(mask, 1, 1, n, n)[0, 0], expected)


def test_tokens_outside_the_grid_attend_to_nothing():
    index = np.arange(-3, 20)
    for mask, size in ((masks.ShiftedWindow((4, 4), 2, 1), 4), (masks.WindowPartition((4, 4), 2, 1), 16)):
        found = mask.allowed(3, 0, index[:, None], index)
        outside = (index < 0) | (index >= size)
        assert not found[outside].any() and not found[:, outside].any() and found.diagonal()[~outside].all()


@pytest.mark.parametrize("grid, window, shift", GRIDS)
def test_tiles_of_windows_are_sound(grid, window, shift):
    for mask in (masks.ShiftedWindow(grid, window, shift), masks.WindowPartition(grid, window, shift)):
        size = mask.sizes()["q_len"]
        bounds = [(lo, hi) for lo in range(-2, size + 2, 2) for hi in (lo, lo + 1, lo + 4)]
        dense = mask.allowed(np.arange(4)[:, None, None], 0, np.arange(-2, size + 8)[:, None], np.arange(-2, size + 8))
        emptied = 0
        for (q_lo, q_hi), (k_lo, k_hi) in itertools.product(bounds, bounds):
            some, every = mask.tile(np.arange(4), 0, q_lo, q_hi, k_lo, k_hi)
            inside = dense[:, q_lo + 2 : q_hi + 3, k_lo + 2 : k_hi + 3].reshape(4, -1)
            assert (some >= inside.any(1)).all() and (every <= inside.all(1)).all()
            emptied += int((~some).sum())
        assert emptied > 0
