"""The exact functions of a layer in NumPy: the published formulas rounded once, forwards and backwards."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from maskattn import standards
from maskattn.numerics import exact
from maskattn.numerics.exact import gauss, pair, slices, trig
from maskattn.numerics.exact.activation import ACTIVATIONS
from maskattn.numerics.exact.pair import Pair
from tests.numerics.exact.layer_cases import CASES, FREQUENCIES, GOLDEN_FILE, KINDS, digests, fixed, normal

WIDE = np.longdouble
#: pi / 2 to 70 digits, from the books
HALF_PI = Fraction("1.5707963267948966192313216916397514420985846996875529104874722961539082")
GOLDEN = json.loads(GOLDEN_FILE.read_text())
LIMIT = Fraction(standards.value("exact.elementary"))


def _widened(arrays):
    """Floats in 64 bits of significand, but for frequencies, which are what they are."""
    return [x if x.dtype.kind == "i" or x is FREQUENCIES or x.base is FREQUENCIES else x.astype(WIDE) for x in arrays]


def _both(case, arrays, d_out):
    return case.call(exact.LAYER, *arrays), case.call(exact.gradients(d_out), *arrays)


def _judge(got, true, kind):
    """Within 0.51 ulp of `kind`; what cancels judged by the largest, as all float64 is: the truth has 11 bits more."""
    assert got.dtype == kind and got.shape == true.shape
    floor = 1 if kind == np.float64 else standards.value("tier1.floor")
    size = np.maximum(np.abs(true), floor * np.abs(true).max())
    exponent = np.maximum(np.frexp(size)[1] - 1, standards._LOWEST[np.dtype(kind).name])
    ulp = np.ldexp(WIDE(standards.eps(np.dtype(kind).name)), exponent)
    assert np.max(np.abs(got.astype(WIDE) - true) / ulp) <= standards.value("tier1.ulp")


def _differences(truth, arrays, place, d_out):
    """The gradient of sum(truth * d_out) by one array, by central differences of fourth order: to some 2^-44."""
    x, step = arrays[place], WIDE(2.0**-12)
    result = np.zeros_like(x)

    def at(index, n):
        moved = list(arrays)
        moved[place] = x.copy()
        moved[place][index] += n * step
        return (truth(*moved) * d_out).sum()

    for index in np.ndindex(x.shape):
        near, far = at(index, 1) - at(index, -1), at(index, 2) - at(index, -2)
        result[index] = (8 * near - far) / (12 * step)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_truth_rounded_once(name, kind):
    case = CASES[name]
    for seed in range(8):
        arrays = case.arrays(normal(seed), KINDS[kind])
        if name != "cosine-short":
            arrays = (np.ldexp(arrays[0].astype(np.float64), seed - 4).astype(KINDS[kind]), *arrays[1:])
        got, true = case.call(exact.LAYER, *arrays), case.truth(*_widened(arrays))
        _judge(got, true, KINDS[kind])
        assert not got[true == 0].any()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_formula_rounded_once(name, kind):
    case = CASES[name]
    arrays = case.arrays(normal(11), KINDS[kind])
    wide = _widened(arrays)
    d_out = normal(12)(case.truth(*wide).shape).astype(KINDS[kind])
    gradients = case.call(exact.gradients(d_out), *arrays)
    for place, got in enumerate(gradients):
        if got is not None:
            true = _differences(case.truth, wide, place, d_out.astype(WIDE))
            _judge(got, true, arrays[place].dtype)


def test_sine_and_cosine_of_any_angle():
    rng = np.random.default_rng(3)
    angles = [rng.uniform(-10, 10, 400), np.exp2(rng.uniform(-40, 31, 800)) * rng.choice([-1, 1], 800)]
    near = [np.arange(1, 200) * np.pi / 2, [0, 11, 22, 355, 710, 52174, 2.0**31 - 128]]  # multiples of pi / 2, nearly
    angles = np.concatenate([*angles, *near]).astype(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        sine, cosine = trig.sine_cosine(exact.NumpyOps(), angles)
    for n, angle in enumerate(angles):
        quarter = round(Fraction(angle) / HALF_PI)
        rest = Fraction(angle) - quarter * HALF_PI
        # numbers of 2^-200: enough for what is left of an angle near a multiple
        sin = sum(Fraction((-1) ** (j // 2), math.factorial(j)) * rest**j for j in range(1, 24, 2))
        cos = sum(Fraction((-1) ** (j // 2), math.factorial(j)) * rest**j for j in range(0, 24, 2))
        true = [(sin, cos), (cos, -sin), (-sin, -cos), (-cos, sin)][quarter % 4]
        for got, wanted in zip((sine, cosine), true, strict=True):
            assert abs(Fraction(got.hi[n]) + Fraction(got.lo[n]) - wanted) <= abs(wanted) * LIMIT


def test_sine_and_cosine_of_what_is_no_angle():
    sine, cosine = trig.sine_cosine(exact.NumpyOps(), np.array([np.nan, np.inf, -np.inf, 2.0**31]))
    assert np.isnan(sine.hi).all() and np.isnan(cosine.hi).all()


def test_roots():
    rng = np.random.default_rng(4)
    x = np.exp2(rng.uniform(-500, 500, 2000)) * rng.uniform(1, 2, 2000)
    x = Pair(x, x * 2.0**-54 * rng.uniform(-1, 1, 2000))
    root = pair.root(exact.NumpyOps(), x)
    for n in range(2000):
        true, got = Fraction(x.hi[n]) + Fraction(x.lo[n]), Fraction(root.hi[n]) + Fraction(root.lo[n])
        assert abs(got * got - true) <= true * LIMIT
    with np.errstate(invalid="ignore"):
        special = pair.root(exact.NumpyOps(), pair.exactly(np.array([0.0, 9.0, -1.0, np.nan])))
    assert special.hi[:2].tolist() == [0, 3] and not special.lo[:2].any() and np.isnan(special.hi[2:]).all()


def test_the_tail_of_the_normal_distribution():
    """By what is known of it: half at 0, and beyond 2 the density by z + 1 / (z + 2 / (z + ...))."""
    half = gauss.normal(exact.NumpyOps(), np.zeros(1))[1]
    assert abs(Fraction(half.hi[0]) + Fraction(half.lo[0]) - Fraction(1, 2)) < LIMIT
    z = np.concatenate([np.random.default_rng(5).uniform(2, 20, 200), np.arange(256, 2600, 13) / 128])
    density, tail = gauss.normal(exact.NumpyOps(), z)
    for n, x in enumerate(map(Fraction, z)):
        below = x
        for k in range(1500, 0, -1):
            below = x + k / Fraction(int(below * 2**90), 2**90)
        true = (Fraction(density.hi[n]) + Fraction(density.lo[n])) / below
        assert abs(Fraction(tail.hi[n]) + Fraction(tail.lo[n]) - true) <= true * LIMIT
    assert not gauss.normal(exact.NumpyOps(), np.array([20.5, 1e300, np.inf]))[1].hi.any()


@pytest.mark.parametrize("spread", [0, 40])
def test_products_of_slices_are_those_of_numbers(spread):
    """However far apart the numbers of a row are: small ones are not lost beside large ones that meet a 0."""
    draws = np.random.default_rng(6)
    a, b = (np.ldexp(draws.standard_normal(s), draws.integers(-spread, spread + 1, s)) for s in ((3, 50), (50, 4)))
    a, b = a.astype(np.float32).astype(np.float64), b.astype(np.float32).astype(np.float64)
    a[:, 0], b[0] = 2.0**100, 0.0
    found = slices.matmul(exact.NumpyOps(), a, b)
    for i, j in np.ndindex(3, 4):
        terms = [Fraction(x) * Fraction(y) for x, y in zip(a[i], b[:, j], strict=True)]
        got = Fraction(found.hi[i, j]) + Fraction(found.lo[i, j])
        assert abs(got - sum(terms)) <= sum(map(abs, terms)) * LIMIT


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in CASES if name != "embed"])
def test_what_is_not_finite_stays_in_its_row(name, bad):
    """One number of one token: all other tokens keep their bits, and so do the gradients of other heads' parameters."""
    case = CASES[name]
    arrays = case.arrays(fixed, np.float32)
    d_out = fixed(case.truth(*arrays).shape).astype(np.float32)
    clean, grads = _both(case, arrays, d_out)
    x = arrays[0].copy()
    x[(1, 2, 1, 3)[: x.ndim]] = bad
    dirty, dirty_grads = _both(case, (x, *arrays[1:]), d_out)
    other = np.ones(x.shape[: max(x.ndim - 2, 1)], bool)
    other[(1, 2)[: other.ndim]] = False
    if name.startswith("products"):  # [B, H, L, R]
        clean, dirty = clean.swapaxes(1, 2), dirty.swapaxes(1, 2)
    assert clean[other].tobytes() == dirty[other].tobytes()
    assert grads[0][other].tobytes() == dirty_grads[0][other].tobytes()
    if name in ("rms", "layer", "cosine", "rotate"):
        assert np.isnan(dirty[1, 2, 1]).any()
    if name == "layer":  # a scale for each head: those of the others
        assert np.isnan(dirty_grads[1][1]).all()
        assert np.delete(grads[1], 1, 0).tobytes() == np.delete(dirty_grads[1], 1, 0).tobytes()


def test_infinities_are_those_of_the_formula():
    inf = np.array([np.inf, -np.inf, np.nan, 1.0], np.float32).reshape(1, 1, 4, 1)
    layer = exact.LAYER
    assert layer.clip(inf, 2.0)[0, 0, :, 0].tolist()[:2] == [2, -2]
    assert layer.activate(inf, "sigmoid", 16)[0, 0, :, 0].tolist()[:2] == [16, 0]
    assert layer.activate(inf, "tanh")[0, 0, :, 0].tolist()[:2] == [1, -1]
    assert layer.activate(inf, "relu")[0, 0, :, 0].tolist()[:2] == [np.inf, 0]
    assert layer.gate(inf, np.ones_like(inf))[0, 0, :, 0].tolist()[:2] == [np.inf, -np.inf]
    assert layer.add(inf, -inf, -0.5)[0, 0, :, 0].tolist()[:2] == [np.inf, -np.inf]
    for name in ("relu2", "gelu", "gelu_tanh", "quick_gelu"):
        assert layer.activate(inf, name)[0, 0, 0, 0] == np.inf
    for name in ACTIVATIONS:
        assert np.isnan(layer.activate(inf, name)[0, 0, 2, 0])


def test_zeros_keep_their_sign():
    zeros = np.array([0.0, -0.0], np.float32).reshape(1, 1, 2, 1)
    layer, positions = exact.LAYER, np.array([[5]], np.int32)
    results = [layer.gate(zeros, zeros + 1), layer.temperature(zeros, positions, scale=1, floor=2)]
    results += [layer.activate(zeros, name) for name in ("tanh", "silu", "gelu", "gelu_tanh", "quick_gelu", "linear")]
    results += [layer.clip(zeros, 1.0), layer.multiply(zeros, zeros + 1), layer.merge(zeros, np.abs(zeros))]
    results += [layer.add(zeros, zeros), layer.add(zeros, zeros, 0.5)]
    for result in results:
        assert result.tobytes() == zeros.tobytes()


def test_growth_is_that_of_dynamic_ntk():
    plain = (1e4 ** (-np.arange(8) / 8)).astype(np.float32)
    for length in (1, 64, 65, 1000, 10**6):
        got = exact.LAYER.growth(plain, np.array([length], np.int32), by=4.0, trained=64)
        grown = WIDE(4) * max(length, 64) / 64 - 3
        _judge(got, plain.astype(WIDE) * grown ** (-np.arange(8).astype(WIDE) / 7), np.float32)
        assert length > 64 or got.tobytes() == plain.tobytes()
    one = np.ones(1, np.float32)
    assert exact.LAYER.growth(one, np.array([99], np.int32), by=4.0, trained=64).tobytes() == one.tobytes()


def test_words_and_sizes_are_checked():
    x = np.ones((1, 2, 2, 4), np.float32)
    with pytest.raises(ValueError, match="kind must be one of rms, layer, got 'l2'"):
        exact.LAYER.norm(x, None, None, kind="l2", eps=1e-6)
    with pytest.raises(ValueError, match="over must be one of head, all, got 'both'"):
        exact.LAYER.norm(x, None, None, kind="rms", eps=1e-6, over="both")
    with pytest.raises(ValueError, match="pairs must be one of half, interleaved, got 'full'"):
        exact.LAYER.rotate(x, np.zeros((1, 2), np.int32), np.ones(2, np.float32), pairs="full")
    with pytest.raises(ValueError, match="at most 2 pairs for heads of 4, got 3"):
        exact.LAYER.rotate(x, np.zeros((1, 2), np.int32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match="activation must be one of sigmoid, .*, linear, got 'elu'"):
        exact.LAYER.gate(x, x, "elu")
    with pytest.raises(ValueError, match="multiple of those of x, 2, got 3"):
        exact.LAYER.products(x, np.ones((5, 3, 4), np.float32), 3, 1.0)


def test_the_bits_are_what_they_were():
    """A new version of this library, or of NumPy, that changes one bit is seen; the twins have NumPy's bits.

    After a wanted change, run `python -m tests.numerics.exact.layer_cases`, and say why.
    """
    found = digests()
    changed = [(name, kind) for name in found for kind in KINDS if found[name][kind] != GOLDEN[name][kind]]
    assert set(found) == set(GOLDEN) and not changed
