from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.numerics import oracle
from maskattn.parity.attention import adapters, checks
from maskattn.parity.attention.cases import (
    DTYPES,
    Case,
    Shape,
    cotangent,
    families,
    get,
    inputs,
    registry,
    select,
    unreached,
)
from maskattn.parity.draws import Draws
from maskattn.parity.findings import bits_equal


def test_bits_equal_sees_signed_zeros_payloads_dtypes_and_places():
    zeros = np.zeros((2, 3), np.float32)
    assert bits_equal("bits", "x", "output", zeros, zeros.copy()).held
    other = zeros.copy()
    other[1, 2] = -0.0
    found = bits_equal("bits", "x", "output", zeros, other)
    assert not found.held and found.differing == 1
    assert "[1, 2]" in found.message and "1 ulp" in found.message
    assert not bits_equal("bits", "x", "output", zeros, zeros.astype(np.float64)).held
    assert not bits_equal("bits", "x", "output", zeros, zeros[:1]).held
    nan = np.array([np.nan], np.float32)
    payload = (nan.view(np.uint32) ^ 1).view(np.float32)
    assert not bits_equal("bits", "x", "output", nan, payload).held


@pytest.mark.parametrize("dtype", DTYPES)
def test_distances_in_ulps_cross_zero(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    two = np.array([2, 0], f"u{kind.itemsize}").view(kind)
    minus_one = np.array([(1 << (8 * kind.itemsize - 1)) + 1, 0], f"u{kind.itemsize}").view(kind)
    assert "at most 4 ulp" in bits_equal("bits", "x", "output", two, minus_one).message


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulp_is_the_spacing_of_the_dtype(dtype):
    kind = getattr(ml_dtypes, dtype, dtype)
    numbers = np.array([1.0, -1.5, 3.9, 0.0, 1e-3, 64.0]).astype(kind)
    expected = np.spacing(np.abs(numbers)).astype(np.float64)
    np.testing.assert_array_equal(standards.ulp(numbers.astype(np.float64), dtype), expected)


def _exact_results(case):
    given, cotangents = inputs(case), cotangent(case)
    results = adapters.NumpyExact().run(case, given, None, cotangents)
    return results, checks.judge(case, given, cotangents, np.longdouble)


@pytest.mark.parametrize("quantity", ["output", "lse", "d_query", "d_key", "d_value"])
def test_tier1_sees_one_ulp(quantity):
    case = get("Causal/square/float32/0")
    results, verdict = _exact_results(case)
    assert all(finding.held for finding in checks.tier1(case, "x", results, verdict))
    wrong = results[quantity].copy()
    at = np.unravel_index(np.argmax(np.abs(wrong)), wrong.shape)
    wrong[at] = np.nextafter(wrong[at], np.float32(0))
    seen = checks.tier1(case, "x", {**results, quantity: wrong}, verdict)
    assert [finding.quantity for finding in seen if not finding.held] == [quantity]


def test_tier1_wants_zero_where_the_oracle_is_zero():
    case = get("KeyPadding/square/float32/0")
    results, verdict = _exact_results(case)
    wrong = results["d_key"].copy()
    wrong[unreached(case)] = 1e-30
    seen = checks.tier1(case, "x", {**results, "d_key": wrong}, verdict)
    assert [finding.quantity for finding in seen if not finding.held] == ["d_key"]
    assert [f.quantity for f in checks.tier0(case, "x", {**results, "d_key": wrong}, verdict) if not f.held] == [
        "d_key"
    ]


def test_tier2_sees_an_error_beyond_its_limit_and_none_within():
    case = get("Causal/square/float32/0")
    results, verdict = _exact_results(case)
    limit = standards.tier2_limit("float32", verdict.magnitude["output"], verdict.logit, verdict.length)
    for share, held in ((0.9, True), (1.2, False)):
        moved = (results["output"] + np.float32(share * limit)).astype(np.float32)
        found = {f.quantity: f.held for f in checks.tier2(case, "x", {**results, "output": moved}, verdict)}
        assert found["output"] is held


def test_form_names_what_is_missing_or_misshapen():
    case = get("Causal/square/float32/0")
    results, verdict = _exact_results(case)
    results.pop("lse")
    results["d_query"] = results["d_query"].astype(np.float64)
    results["output"] = results["output"] * np.float32(np.nan)
    seen = {finding.quantity: finding.message for finding in checks.form(case, "x", results, verdict)}
    assert "missing" in seen["lse"]
    assert "expected float32" in seen["d_query"] and "got float64" in seen["d_query"]
    assert "NaN" in seen["output"]


def test_module_limit_bounds_a_float32_module_and_not_a_wrong_one():
    draws = Draws(3)
    x = draws.normal((2, 6, 12)).astype(np.float32)
    shapes = {
        "query.kernel": (12, 3, 4),
        "key.kernel": (12, 3, 4),
        "value.kernel": (12, 3, 4),
        "out.kernel": (3, 4, 12),
    }
    weights = {name: draws.normal(shape).astype(np.float32) / np.float32(4) for name, shape in shapes.items()}
    allowed = masks.Causal().dense(6, 6)
    right = standards.module_oracle(x, weights, allowed)
    limit = standards.module_limit(x, weights, allowed, "float32")
    assert right.shape == limit.shape == (2, 6, 12)
    parts = [np.einsum("ble,ehd->blhd", x, weights[f"{name}.kernel"]) for name in ("query", "key", "value")]
    attended = oracle.attention(*parts, allowed).output.astype(np.float32)
    native = np.einsum("blhd,hdo->blo", attended, weights["out.kernel"])
    assert native.dtype == np.float32
    assert (np.abs(native - right) <= limit).all()
    assert (limit < standards.value("module.limit")).all()
    assert not (np.abs(native * np.float32(1.001) - right) <= limit).all()


def test_every_mask_of_the_library_has_cases():
    exported = [getattr(masks, name) for name in masks.__all__]
    classes = {cls.__name__ for cls in exported if isinstance(cls, type) and issubclass(cls, masks.Mask)}
    built_by_operators = {"Mask", "And", "Or", "Not", "At", "Positioned", "Stored"}
    assert classes - built_by_operators == set(families())
    assert set(families()) <= {case.family for case in registry()}


def test_cases_are_distinct_and_reproducible():
    cases = list(registry())
    assert len({case.id for case in cases}) == len(cases) > 200
    for case in cases[::37]:
        again = get(case.id)
        for name, array in inputs(case).items():
            assert array.tobytes() == inputs(again)[name].tobytes()
    assert {case.dtype for case in cases} == set(DTYPES)
    assert any(case.shape.heads // case.shape.kv_heads > 1 for case in cases)
    assert select("Causal/wide/*") and all(case.id.startswith("Causal/wide") for case in select("Causal/wide/*"))


def test_an_unknown_case_names_its_neighbours():
    with pytest.raises(KeyError, match="Causal/square/float32/0"):
        get("Causal/square/float32")


def test_adapters_are_loaded_by_name_or_refused():
    assert adapters.load("maskattn.parity.attention.adapters:NumpyExact").name == "numpy"
    with pytest.raises(ValueError, match="pkg.mod:ATTRIBUTE"):
        adapters.load("maskattn.parity.attention.adapters")
    with pytest.raises(TypeError, match="no unsupported, run"):
        adapters.load(f"{__name__}:NotAnAdapter")


class NotAnAdapter:
    name = "none"
    conventions: dict[str, str] = {}


def test_a_case_may_be_made_by_hand():
    case = Case("mine", "mine", Shape(1, 2, 3, 2, 1, 5, 4), "float32", masks.Causal(1), sinks=True, bias="dense")
    results, verdict = _exact_results(case)
    assert set(results) == {"output", "lse", "d_query", "d_key", "d_value", "d_bias", "d_sinks"} == set(verdict.right)
    assert all(finding.held for finding in checks.tier1(case, "x", results, verdict))
