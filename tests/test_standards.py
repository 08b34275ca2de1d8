"""How errors are held against limits."""

import ml_dtypes
import numpy as np

from maskattn import standards


def test_a_share_is_0_without_an_error_and_never_kept_by_what_is_not_finite():
    error = np.array([0.0, 0.0, 1.0, 2.0, 1.0, np.inf, np.nan])
    limit = np.array([0.0, 4.0, 4.0, 1.0, 0.0, 4.0, 4.0])
    share = standards.share(error, limit)
    np.testing.assert_array_equal(share[:4], [0, 0, 0.25, 2])
    assert (share[4:] > 1).all()
    np.testing.assert_array_equal(standards.share(error[:4], 2.0), [0, 0, 0.5, 1])


def test_one_rounding_at_the_end_is_no_error_of_a_narrow_dtype():
    right = np.array([1.0, 1.0, 64.0])
    error = np.array([2.0**-9, 2.0**-7, 0.5])
    np.testing.assert_array_equal(standards.beyond_rounding(error, right, "bfloat16"), [0, 2.0**-8, 0.25])
    np.testing.assert_array_equal(standards.beyond_rounding(error, right, "float32"), error)


def test_whole_models_are_held_to_the_peer_and_to_its_error():

    def share_of(*given, **few):
        return float(standards.share(*standards.whole_model_error(*given, **few)))

    right = np.random.default_rng(0).standard_normal((3, 50))
    theirs = right.astype(np.float32)
    assert share_of(theirs, theirs, right, "float32") == 0
    noise = np.random.default_rng(1).standard_normal(right.shape) * standards.eps("float32")
    little, all_over = theirs * (1 + noise), theirs * (1 + 20 * noise)
    assert share_of(little, theirs, right, "float32") <= 1
    assert share_of(all_over, theirs, right, "float32") > 1
    one = theirs.copy()
    one[0, 0] += 10 * standards.value("tier4.float32") * np.abs(theirs).max()
    assert share_of(one, theirs, right, "float32") > 1  # of one of them
    narrow = right.astype(ml_dtypes.bfloat16)
    assert share_of(narrow, narrow, right, "bfloat16") <= 1
    off = (right + 2 * (narrow - right)).astype(np.float64)
    assert share_of(off, narrow, right, "bfloat16") > 1
    assert not share_of(theirs * np.nan, theirs, right, "float32") <= 1
    chance = np.array([0.5, 2.0]), np.array([0.5, 2.0], np.float32), np.array([0.5, 2.0])
    assert share_of(chance[0] * 1.000001, *chance[1:], "float32") > 1
    assert share_of(chance[0] * 1.000001, *chance[1:], "float32", few=2) <= 1  # 1e-5 of the largest
    assert share_of(chance[0] * 1.0001, *chance[1:], "float32", few=2) > 1


def test_gradients_of_nothing_but_rounding_are_held_to_their_layers():
    theirs, right = np.full(5, standards.eps("float32")), np.zeros(5)
    assert standards.gradient_share(-theirs, theirs, right, 1.0) <= 1
    moved = theirs + 2 * standards.value("tier4.gradient")
    assert standards.gradient_share(moved, theirs, right, 1.0) > 1
    values = standards.value("tier4.gradient") / standards.eps("float32") / 4  # of whose difference it is all the rest
    assert standards.gradient_share(moved, theirs, right, 1.0, values) <= 1
    assert standards.gradient_share(moved + 1, theirs, right, 1.0, values) > 1
