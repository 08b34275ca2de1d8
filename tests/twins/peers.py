"""How far another library's attention and ours may be apart: the sum of both bounds."""

import numpy as np

from maskattn import standards
from maskattn.numerics import oracle


def limits(query, key, value, allowed, d_output, dtype="float32", **options):
    """Of the output and the gradients of query, key and value (and of the bias, if there is one), in this order.

    Arrays [B, L, H, D] of NumPy; allowed: bool, True = may attend. A function that rounds its weights to a narrow dtype
    errs by that dtype's eps.
    """
    sizes = oracle.magnitudes(query, key, value, allowed, d_output=d_output, **options)
    length = max(query.shape[1], key.shape[1])
    found = (sizes.output, sizes.query, sizes.key, sizes.value, *([] if sizes.bias is None else [sizes.bias]))
    narrow = standards.is_narrow(dtype)
    largest = [float(np.max(size, initial=0)) for size in found]
    each = [standards.tier2_limit(dtype, most, sizes.logit, length, rounded_inside=narrow) for most in largest]
    rounding = standards.value("module.narrow") * standards.eps(dtype) if narrow else 0.0
    return [standards.value("module.peer") * (one + rounding * most) for one, most in zip(each, largest, strict=True)]


def within(found, expected, limit):
    """Asserts the same shape and dtype, and that nowhere more than `limit` lies between them, NaN included."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    assert np.all(difference <= limit), f"{difference.max()} apart, allowed are {np.max(limit)}"
