"""Numbers that carry their errors: first-order bounds hold, and gradients are those of finite differences."""

import numpy as np
import pytest

from maskattn import standards
from maskattn.numerics.running import Rounding, given, gradients

RNG = np.random.default_rng(11)
EXACT, COARSE = Rounding(0.0, 0.0), Rounding(2.0**-10, 2.0**-10)
X, Y = RNG.standard_normal((3, 4)), RNG.standard_normal((4, 2))


def computed(use, x, y):
    """Everything that there is, once."""
    a = use.product("ij,jk->ik", x, y)
    a = use.add(a, use.times(use.mean(a, (-1,)), -1.0))
    a = use.times(
        a, use.each_one(use.add(use.mean(use.times(a, a), (-1,)), given(0.3)), np.sqrt, lambda u: 0.5 / u**0.5)
    )
    return use.each_one(a, np.tanh, lambda u: 1 - np.tanh(u) ** 2).moved(lambda u: u.T, lambda g: g.T)


def test_gradients_are_those_of_finite_differences():
    x, y = given(X), given(Y)
    result = computed(EXACT, x, y)
    cotangent = RNG.standard_normal(result.shape)
    found = gradients(result, cotangent, {"x": x, "y": y})
    sizes = gradients(result, cotangent, {"x": x, "y": y}, size=True)
    for name, at in (("x", X), ("y", Y)):
        for place in np.ndindex(at.shape):
            step = np.zeros(at.shape)
            step[place] = 1e-5
            ends = []
            for sign in (1, -1):
                moved = {"x": X, "y": Y} | {name: at + sign * step}
                ends.append(computed(EXACT, given(moved["x"]), given(moved["y"])).value)
            slope = float(((ends[0] - ends[1]) * cotangent).sum() / 2e-5)
            assert abs(slope - found[name][place]) <= standards.value("oracle.differences") * 10
        assert np.all(np.abs(found[name]) <= sizes[name] * (1 + standards.value("same.float64")))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_error_bounds_what_a_narrow_computation_is_off(dtype):
    eps = standards.eps(dtype)
    use = Rounding(4 * eps, 4 * eps)
    x, y = X.astype(dtype), Y.astype(dtype)
    judged = computed(use, given(x), given(y))
    a = x @ y
    a = a - a.mean(-1, keepdims=True)
    a = np.tanh(a * np.sqrt((a * a).mean(-1, keepdims=True) + np.array(0.3, dtype))).T
    error = np.abs(a.astype(np.float64) - judged.value)
    assert np.all(error <= judged.error) and error.max() > 0


def test_an_error_of_an_input_is_carried():
    off = np.abs(RNG.standard_normal(X.shape)) * 1e-6
    judged = computed(EXACT, given(X, off), given(Y))
    for _ in range(20):
        moved = computed(EXACT, given(X + off * RNG.choice([-1.0, 1.0], X.shape)), given(Y))
        assert np.all(np.abs(moved.value - judged.value) <= judged.error * (1 + standards.value("module.limit")))
    assert np.all(computed(COARSE, given(X), given(Y)).error > judged.error)


def test_what_is_taken_twice_has_both_gradients():
    x = given(X)
    found = gradients(EXACT.times(x, x), np.ones(X.shape), {"x": x, "none": given(1.0)})
    assert np.array_equal(found["x"], 2 * X) and found["none"] == 0
