"""merge: attention over parts of the keys, put together, is attention over all of them, in both twins."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.parity.attention.cases import Case, Shape
from tests.twins.kernels import judged

pytestmark = pytest.mark.hurried

SHAPE = Shape(3, 24, 40, 4, 2, 8, 5)
CUTS = {"2": (0, 17, 40), "3": (0, 9, 10, 40)}
LENGTHS = np.array([40, 0, 12])
MASKS = {
    "causal": masks.Causal(),  # the last part has no key for any query
    "window": masks.SlidingWindow(5, 3).at(q_offset=8),
    "padding": masks.KeyPadding(LENGTHS) & masks.Causal(16),
    "empty rows": masks.QueryMask(np.arange(24)[None] % 5 > 0) & (masks.KeyPadding(LENGTHS) | masks.Causal(-3)),
}


def results(twin, inputs, cotangent, mask, cuts, **options):
    """Output, log-sum-exp and gradients of NumPy inputs; `cuts` are the first keys of the parts, in JAX traced."""

    def whole(query, key, value, starts):
        parts = [
            twin.attention(query, key[:, a:b], value[:, a:b], mask.at(k_offset=start), return_lse=True, **options)
            for a, b, start in zip(cuts[:-1], cuts[1:], starts, strict=True)
        ]
        return functools.reduce(lambda x, y: twin.merge(*x, *y), parts)

    arrays = [inputs[name] for name in ("query", "key", "value")]
    starts = np.array(cuts[:-1], np.int32)
    return twin.vjp(whole, arrays, (cotangent["output"], cotangent["lse"]), starts)


def failures(twin, mask, cuts, **options):
    """What the suite's checks find wrong: the judge is the oracle with all keys."""
    case = Case("merge", "blockwise", SHAPE, "float32", mask, seed=3)
    return judged.failures(case, lambda *given: results(twin, *given, mask, cuts, **options))


#: JAX compiles each: two parts, and three with empty rows, which are of every kind of row, stand for all.
@pytest.mark.parametrize(
    ("mask", "cuts"),
    [
        ("causal", "2"),
        *(pytest.param(x, "3", marks=[pytest.mark.slow_in("jax")] * (x != "empty rows")) for x in MASKS),
    ],
)
def test_parts_of_the_keys_are_the_whole(mask, cuts, twin):
    assert not failures(twin, MASKS[mask], CUTS[cuts], kernel="blockwise", blocks=(8, 8))


def test_whatever_the_kernel(twin):
    """And a row that gives NaN where it attends to nothing counts for nothing there."""
    assert not failures(twin, MASKS["causal"], CUTS["2"], kernel="reference", empty_rows="nan")


def rows(twin, out, lse, out2, lse2):
    """merge on rows of one number: what it returns, and the gradients of its sum with the log-sum-exps."""

    def finite(*arrays):
        return [twin.numpy.where(twin.numpy.isfinite(x), x, 0).sum() for x in twin.merge(*arrays)]

    given = shaped(out, lse, out2, lse2)
    found = twin.merge(*map(twin.array, given))
    grads = twin.grad(lambda *arrays: sum(finite(*arrays)), *given)
    return [twin.to_numpy(x).ravel() for x in (*found, *grads)]


def shaped(out, lse, out2, lse2):
    outs, sums = (np.array(x, np.float32).reshape(1, -1, 1, 1) for x in (out, out2)), (lse, lse2)
    lse, lse2 = (np.array(x, np.float32).reshape(1, -1, 1) for x in sums)
    out, out2 = outs
    return out, lse, out2, lse2


def test_rows_that_attend_to_nothing(twin):
    """Both parts; the first; the second. Their outputs may hold anything, and have no gradient."""
    nothing = -np.inf
    found = rows(twin, [-0.0, np.nan, 2], [nothing, nothing, 1], [np.nan, 3, np.inf], [nothing, 4, nothing])
    out, lse, d_out, d_lse, d_out2, d_lse2 = found
    np.testing.assert_array_equal(out, [0, 3, 2])
    assert not np.signbit(out).any()
    np.testing.assert_array_equal(lse, [nothing, 4, 1])
    for gradient, expected in ((d_out, [0, 0, 1]), (d_lse, [0, 0, 1]), (d_out2, [0, 1, 0]), (d_lse2, [0, 1, 0])):
        np.testing.assert_array_equal(gradient, expected)


def test_what_is_not_finite(twin):
    """Infinite values stay infinite, however small their weight; one that is exactly 0 gives 0."""
    out, lse, *_ = rows(twin, [np.inf, np.inf, np.inf, np.nan], [0, 0, 0, 0], [1, 1, 1, 1], [0, 60, 200, 1])
    np.testing.assert_array_equal(out, [np.inf, np.inf, 1, np.nan])
    assert np.isfinite(lse).all()


def test_large_and_small(twin):
    """Weights of 2^-30 and less count; what a large log-sum-exp loses by rounding scales nothing."""
    out, lse, *_ = rows(twin, [2.0**30, 1], [0, 12345.678], [0, 1], [30 * np.log(2), 12344.321])
    np.testing.assert_allclose(out, [1, 1], rtol=standards.value("same.tiles"))


def test_arguments_are_checked(twin):
    merge = twin.merge
    out, lse, *_ = map(twin.array, shaped([1, 2], [1, 2], [1, 2], [1, 2]))
    narrow = twin.array(np.zeros((1, 2, 1, 1), np.float16))
    with pytest.raises(ValueError, match=r"(?s)merge: 2 problems.*lse2 must have the shape \(1, 2, 1\).*one dtype"):
        merge(out, lse, narrow, lse[:, :1])
    with pytest.raises(TypeError, match="merge: lse must be one of float64, float32, got float16"):
        merge(narrow, narrow[..., 0], narrow, narrow[..., 0])
    with pytest.raises(TypeError, match="merge: lse must be a"):
        merge(out, 0.0, out, lse)
    merged, total = merge(narrow, lse, narrow, lse)
    assert (merged.dtype, total.dtype) == (narrow.dtype, lse.dtype)
