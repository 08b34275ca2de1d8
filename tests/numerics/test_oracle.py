"""The judge is judged: gradients against finite differences, the output against a loop, magnitudes as bounds."""

import itertools

import numpy as np
import pytest

from maskattn import standards
from maskattn.numerics import oracle

B, L, S, H, K, D, DV = 2, 3, 4, 4, 2, 5, 3


def _problem(seed, sinks):
    rng = np.random.default_rng(seed)
    allowed = rng.random((B, 1, L, S)) < 0.6
    allowed[0, 0, 1] = False
    return {
        "query": rng.standard_normal((B, L, H, D)),
        "key": rng.standard_normal((B, S, K, D)),
        "value": rng.standard_normal((B, S, K, DV)),
        "bias": rng.standard_normal((1, H, 1, S)),
        "sinks": rng.standard_normal(H) if sinks else None,
        "allowed": allowed,
    }, {"d_output": rng.standard_normal((B, L, H, DV)), "d_lse": rng.standard_normal((B, L, H))}


@pytest.mark.parametrize(
    ("softcap", "sinks", "empty_rows"), list(itertools.product([None, 1.5], [False, True], ["zero", "mean", "nan"]))
)
def test_gradients_equal_finite_differences(softcap, sinks, empty_rows):
    inputs, cotangents = _problem(0, sinks)
    options = {"softcap": softcap, "empty_rows": empty_rows}
    grads = oracle.backward(**inputs, **cotangents, **options)
    sizes = oracle.magnitudes(**inputs, **cotangents, **options)

    def loss(changed):
        out, lse = oracle.attention(**changed, **options)
        return (
            np.where(np.isfinite(out), out * cotangents["d_output"], 0).sum()
            + np.where(np.isfinite(lse), lse * cotangents["d_lse"], 0).sum()
        )

    step = 1e-6
    for name in ("query", "key", "value", "bias", "sinks"):
        if inputs[name] is None:
            assert getattr(grads, name) is None
            continue
        measured = np.zeros_like(inputs[name])
        for index in np.ndindex(measured.shape):
            ends = []
            for sign in (1, -1):
                changed = dict(inputs, **{name: inputs[name].copy()})
                changed[name][index] += sign * step
                ends.append(loss(changed))
            measured[index] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(getattr(grads, name), measured, rtol=0, atol=standards.value("oracle.differences"))
        assert np.all(getattr(sizes, name) >= np.abs(getattr(grads, name)) * (1 - standards.value("same.float64")))


def test_output_equals_a_loop_over_what_is_allowed():
    inputs, _ = _problem(1, sinks=False)
    out, lse = oracle.attention(**inputs)
    for b, i, h in np.ndindex(B, L, H):
        keys = np.flatnonzero(inputs["allowed"][b, 0, i])
        if not keys.size:
            assert not out[b, i, h].any() and lse[b, i, h] == -np.inf
            continue
        kv = h // (H // K)
        x = np.array([inputs["query"][b, i, h] @ inputs["key"][b, j, kv] / D**0.5 for j in keys])
        e = np.exp(x + inputs["bias"][0, h, 0, keys])
        np.testing.assert_allclose(
            out[b, i, h], e @ inputs["value"][b, keys, kv] / e.sum(), rtol=standards.value("same.float64")
        )
        np.testing.assert_allclose(lse[b, i, h], np.log(e.sum()), rtol=standards.value("same.float64"))


def test_longdouble_agrees_with_float64_and_is_finer():
    inputs, cotangents = _problem(2, sinks=True)
    fine = oracle.backward(**inputs, **cotangents, dtype=np.longdouble)
    plain = oracle.backward(**inputs, **cotangents)
    assert fine.query.dtype == np.longdouble
    for a, b in zip(fine, plain, strict=True):
        np.testing.assert_allclose(
            a.astype(float), b, rtol=standards.value("same.float64"), atol=standards.value("same.float64")
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_forbidden_never_leaks(bad):
    inputs, cotangents = _problem(3, sinks=False)
    inputs["allowed"][1, 0, :, 2] = False
    clean = (*oracle.attention(**inputs), *oracle.backward(**inputs, **cotangents))
    inputs["key"][1, 2], inputs["value"][1, 2] = bad, bad
    dirty = (*oracle.attention(**inputs), *oracle.backward(**inputs, **cotangents))
    for a, b in zip(clean, dirty, strict=True):
        assert (a is None and b is None) or a.tobytes() == b.tobytes()


def test_a_row_without_keys_is_the_average_under_mean_and_goes_to_the_sink_with_sinks():
    inputs, _ = _problem(4, sinks=True)
    out, lse = oracle.attention(**inputs, empty_rows="mean")
    assert not out[0, 1].any()
    limit = standards.value("same.average")
    np.testing.assert_allclose(lse[0, 1], inputs["sinks"], rtol=limit)
    inputs["sinks"] = None
    out, lse = oracle.attention(**inputs, empty_rows="mean")
    np.testing.assert_allclose(
        out[0, 1], np.repeat(inputs["value"][0].mean(axis=0), H // K, axis=0), rtol=standards.value("same.average")
    )
    assert np.all(lse[0, 1] == -np.inf)
