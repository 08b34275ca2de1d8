"""merge: attention over parts of the keys, put together, is attention over all of them, in both twins."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.parity.attention.cases import Case, Shape
from tests.twins.kernels import judged

SHAPE = Shape(3, 24, 40, 4, 2, 8, 5)
CUTS = {"2": (0, 17, 40), "3": (0, 9, 10, 40)}
LENGTHS = np.array([40, 0, 12])
MASKS = {
    "causal": masks.Causal(),  # the last part has no key for any query
    "window": masks.SlidingWindow(5, 3).at(q_offset=8),
    "padding": masks.KeyPadding(LENGTHS) & masks.Causal(16),
    "empty rows": masks.QueryMask(np.arange(24)[None] % 5 > 0) & (masks.KeyPadding(LENGTHS) | masks.Causal(-3)),
}


class Torch:
    """The results of NumPy inputs; `starts` are the first keys of the parts."""

    @staticmethod
    def run(inputs, cotangent, mask, cuts, **options):
        torch = pytest.importorskip("torch")
        from maskattn_torch import attention, merge
        from maskattn_torch.testing.adapter import from_numpy, to_numpy

        arrays = [from_numpy(inputs[name]).requires_grad_() for name in ("query", "key", "value")]
        query, key, value = arrays
        parts = [
            attention(query, key[:, a:b], value[:, a:b], mask.at(k_offset=torch.tensor(a)), return_lse=True, **options)
            for a, b in zip(cuts, cuts[1:], strict=False)
        ]
        found = functools.reduce(lambda x, y: merge(*x, *y), parts)
        given = [from_numpy(cotangent[name]) for name in ("output", "lse")]
        return [to_numpy(x.detach()) for x in (*found, *torch.autograd.grad(found, arrays, given))]


class Jax:
    @staticmethod
    def run(inputs, cotangent, mask, cuts, **options):
        jax = pytest.importorskip("jax")
        from maskattn_jax import attention, merge

        @jax.jit
        def results(query, key, value, starts, given):
            """The offsets are traced."""

            def parts(query, key, value):
                found = [
                    attention(query, key[:, a:b], value[:, a:b], mask.at(k_offset=start), return_lse=True, **options)
                    for a, b, start in zip(cuts[:-1], cuts[1:], starts, strict=True)
                ]
                return functools.reduce(lambda x, y: merge(*x, *y), found)

            found, pull = jax.vjp(parts, query, key, value)
            return (*found, *pull(given))

        arrays = [inputs[name] for name in ("query", "key", "value")]
        given = (cotangent["output"], cotangent["lse"])
        return [np.asarray(x) for x in results(*arrays, np.array(cuts[:-1], np.int32), given)]


TWINS = pytest.mark.parametrize("twin", [Torch, Jax], ids=["torch", "jax"])


def failures(twin, mask, cuts, **options):
    """What the suite's checks find wrong: the judge is the oracle with all keys."""
    case = Case("merge", "blockwise", SHAPE, "float32", mask, seed=3)
    return judged.failures(case, lambda *given: twin.run(*given, mask, cuts, **options))


@TWINS
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("mask", MASKS)
def test_parts_of_the_keys_are_the_whole(mask, cuts, twin):
    assert not failures(twin, MASKS[mask], CUTS[cuts], kernel="blockwise", blocks=(8, 8))


@TWINS
def test_whatever_the_kernel(twin):
    """And a row that gives NaN where it attends to nothing counts for nothing there."""
    assert not failures(twin, MASKS["causal"], CUTS["2"], kernel="reference", empty_rows="nan")


class Rows:
    """merge on rows of one number: what a twin returns, and the gradients of its sum with the log-sum-exps."""

    @staticmethod
    def torch(out, lse, out2, lse2):
        torch = pytest.importorskip("torch")
        from maskattn_torch import merge

        arrays = [torch.tensor(x).requires_grad_() for x in shaped(out, lse, out2, lse2)]
        found = merge(*arrays)
        sums = [torch.where(x.isfinite(), x, 0).sum() for x in found]
        return [x.detach().numpy().ravel() for x in (*found, *torch.autograd.grad(sum(sums), arrays))]

    @staticmethod
    def jax(out, lse, out2, lse2):
        jax = pytest.importorskip("jax")
        from maskattn_jax import merge

        def total(*arrays):
            found = merge(*arrays)
            return sum(jax.numpy.where(jax.numpy.isfinite(x), x, 0).sum() for x in found), found

        grads, found = jax.grad(total, (0, 1, 2, 3), has_aux=True)(*shaped(out, lse, out2, lse2))
        return [np.asarray(x).ravel() for x in (*found, *grads)]


def shaped(out, lse, out2, lse2):
    outs, sums = (np.array(x, np.float32).reshape(1, -1, 1, 1) for x in (out, out2)), (lse, lse2)
    lse, lse2 = (np.array(x, np.float32).reshape(1, -1, 1) for x in sums)
    out, out2 = outs
    return out, lse, out2, lse2


ROWS = pytest.mark.parametrize("rows", [Rows.torch, Rows.jax], ids=["torch", "jax"])


@ROWS
def test_rows_that_attend_to_nothing(rows):
    """Both parts; the first; the second. Their outputs may hold anything, and have no gradient."""
    nothing = -np.inf
    found = rows([-0.0, np.nan, 2], [nothing, nothing, 1], [np.nan, 3, np.inf], [nothing, 4, nothing])
    out, lse, d_out, d_lse, d_out2, d_lse2 = found
    np.testing.assert_array_equal(out, [0, 3, 2])
    assert not np.signbit(out).any()
    np.testing.assert_array_equal(lse, [nothing, 4, 1])
    for gradient, expected in ((d_out, [0, 0, 1]), (d_lse, [0, 0, 1]), (d_out2, [0, 1, 0]), (d_lse2, [0, 1, 0])):
        np.testing.assert_array_equal(gradient, expected)


@ROWS
def test_what_is_not_finite(rows):
    """Infinite values stay infinite, however small their weight; one that is exactly 0 gives 0."""
    out, lse, *_ = rows([np.inf, np.inf, np.inf, np.nan], [0, 0, 0, 0], [1, 1, 1, 1], [0, 60, 200, 1])
    np.testing.assert_array_equal(out, [np.inf, np.inf, 1, np.nan])
    assert np.isfinite(lse).all()


@ROWS
def test_large_and_small(rows):
    """Weights of 2^-30 and less count; what a large log-sum-exp loses by rounding scales nothing."""
    out, lse, *_ = rows([2.0**30, 1], [0, 12345.678], [0, 1], [30 * np.log(2), 12344.321])
    np.testing.assert_allclose(out, [1, 1], rtol=standards.value("same.tiles"))


@pytest.mark.parametrize("package", ["maskattn_torch", "maskattn_jax"])
def test_arguments_are_checked(package):
    twin = pytest.importorskip(f"{package}.testing.adapter")
    merge = pytest.importorskip(package).merge
    out, lse, *_ = map(twin.from_numpy, shaped([1, 2], [1, 2], [1, 2], [1, 2]))
    narrow = twin.from_numpy(np.zeros((1, 2, 1, 1), np.float16))
    with pytest.raises(ValueError, match=r"(?s)merge: 2 problems.*lse2 must have the shape \(1, 2, 1\).*one dtype"):
        merge(out, lse, narrow, lse[:, :1])
    with pytest.raises(TypeError, match="merge: lse must be one of float64, float32, got float16"):
        merge(narrow, narrow[..., 0], narrow, narrow[..., 0])
    with pytest.raises(TypeError, match="merge: lse must be a"):
        merge(out, 0.0, out, lse)
    merged, total = merge(narrow, lse, narrow, lse)
    assert (merged.dtype, total.dtype) == (narrow.dtype, lse.dtype)
