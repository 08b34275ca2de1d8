"""How errors are held against limits."""

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
