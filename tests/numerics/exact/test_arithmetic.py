"""The exact arithmetic against ``decimal`` and ``fractions``, and its products shown to be exact."""

from decimal import Context, Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from maskattn import standards
from maskattn.numerics import exact
from maskattn.numerics.exact import bits, elementary, pair
from maskattn.numerics.exact.pair import Pair

OPS = exact.NumpyOps()
FINE = Context(prec=50)
RNG = np.random.default_rng(20)


def _pair(values):
    return Pair(values, values * 2.0**-54 * RNG.uniform(-1, 1, values.shape))


def _exactly(x):
    return [Decimal(float(hi)) + Decimal(float(lo)) for hi, lo in zip(x.hi, x.lo, strict=True)]


def _wide(count):
    return RNG.standard_normal(count) * np.exp2(RNG.integers(-60, 60, count))


def test_exp():
    x = -np.abs(RNG.standard_normal(3000)) * np.exp(RNG.uniform(-30, 5, 3000))
    x = _pair(np.concatenate([x[x > -206.9], [-1e-300, -206.99]]))
    with np.errstate(under="ignore"):
        result = elementary.exp(OPS, x)
    worst = max(abs(r / FINE.exp(v) - 1) for r, v in zip(_exactly(result), _exactly(x), strict=True))
    assert worst < Decimal(standards.value("exact.elementary"))


def test_exp_at_the_ends():
    x = np.array([0.0, -0.0, -207.1, -1e300, -np.inf, np.nan])
    with np.errstate(invalid="ignore"):
        result = elementary.exp(OPS, Pair(x, np.zeros(6)))
    assert result.hi[:2].tolist() == [1, 1] and not result.lo[:2].any()
    assert not result.hi[2:5].any() and np.isnan(result.hi[5])


def test_log():
    x = _pair(np.exp(RNG.uniform(-5, 30, 3000)))
    worst = max(
        abs(r - FINE.ln(v)) / max(1, abs(FINE.ln(v)))
        for r, v in zip(_exactly(elementary.log(OPS, x)), _exactly(x), strict=True)
    )
    assert worst < Decimal(standards.value("exact.elementary"))
    one = elementary.log(OPS, Pair(np.ones(1), np.zeros(1)))
    assert one.hi[0] == 0 and one.lo[0] == 0


def test_tanh_and_its_slope():
    x = _pair(np.concatenate([RNG.standard_normal(1000) * 3, RNG.standard_normal(200) * 60, [0.0]]))
    value, slope = elementary.tanh(OPS, x)
    for v, t, s in zip(_exactly(x), _exactly(value), _exactly(slope), strict=True):
        e = FINE.exp(-2 * abs(v))
        true = FINE.divide(1 - e, 1 + e).copy_sign(v)
        assert abs(t - true) < Decimal(standards.value("exact.tanh"))
        assert abs(s - (1 - true * true)) < Decimal(standards.value("exact.tanh"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_widens_exactly_and_narrows_back(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    patterns = np.arange(1 << 16, dtype=np.uint16)
    x = patterns.view(kind)
    with np.errstate(invalid="ignore"):
        wide = bits.widen(OPS, x)
        expected = x.astype(np.float64)
    numbers = ~np.isnan(expected)
    assert wide[numbers].tobytes() == expected[numbers].tobytes() and np.isnan(wide[~numbers]).all()
    back = bits.narrow(OPS, wide, np.zeros_like(wide), dtype)
    assert np.array_equal(back.view(np.uint16)[numbers], patterns[numbers])
    assert len(set(back.view(np.uint16)[~numbers].tolist())) == 1  # one NaN


def test_float32_widens_exactly_and_narrows_like_a_cast():
    x = RNG.integers(0, 2**32, 500_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, (x.view(np.uint32) & 0x807FFFFF).view(np.float32)])  # and as many subnormals
    with np.errstate(invalid="ignore"):
        wide, expected = bits.widen(OPS, x), x.astype(np.float64)
    numbers = ~np.isnan(expected)
    assert wide[numbers].tobytes() == expected[numbers].tobytes()
    d = RNG.standard_normal(500_000) * np.exp2(RNG.integers(-155, 130, 500_000))
    d[:1000] = np.ldexp(RNG.integers(1, 1 << 25, 1000) + 0.5, -160)  # ties and subnormals
    with np.errstate(over="ignore", under="ignore"):
        expected = d.astype(np.float32)
    assert bits.narrow(OPS, d, np.zeros_like(d), "float32").tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_tie_is_broken_by_what_lies_below_it(dtype):
    mantissa = exact.FORMATS[dtype][0]
    tie = np.float64(1 + 2.0 ** -(mantissa + 1))
    for lo, expected in [(0.0, 1.0), (2.0**-80, 1 + 2.0**-mantissa), (-(2.0**-80), 1.0)]:
        for sign in (1, -1):
            result = bits.narrow(OPS, np.array([sign * tie]), np.array([sign * lo]), dtype)
            assert float(result[0]) == sign * expected
    odd = np.float64(1 + 3 * 2.0 ** -(mantissa + 1))
    below = bits.narrow(OPS, np.array([odd]), np.array([-(2.0**-80)]), dtype)
    assert float(below[0]) == 1 + 2.0**-mantissa


def test_halves_and_pieces_are_short_and_their_products_exact():
    x, y = _wide(2000), _wide(2000)
    for v in (x, y):
        high, low = bits.halves(OPS, v)
        assert np.array_equal(high + low, v)
    for a in bits.halves(OPS, x):
        for b in bits.halves(OPS, y):
            assert all(Fraction(p) == Fraction(u) * Fraction(w) for p, u, w in zip(a * b, a, b, strict=True))
    f = _wide(2000).astype(np.float32)
    for dtype, others in [("float32", [f.astype(np.float64)]), ("float64", bits.halves(OPS, y))]:
        terms = pair.pieces(OPS, _pair(x), dtype)
        for a in terms:
            for b in others:
                assert all(Fraction(p) == Fraction(u) * Fraction(w) for p, u, w in zip(a * b, a, b, strict=True))


@pytest.mark.parametrize(("name", "true"), [("multiply", Fraction.__mul__), ("divide", Fraction.__truediv__)])
def test_pair_products_and_quotients(name, true):
    x, y = _pair(_wide(1000)), _pair(_wide(1000))
    result = getattr(pair, name)(OPS, x, y)
    for r, u, v in zip(_exactly(result), _exactly(x), _exactly(y), strict=True):
        assert abs(Fraction(r) / true(Fraction(u), Fraction(v)) - 1) < Fraction(1, 2**75)


def test_zeros_may_stand_anywhere_in_a_sum():
    a, b = RNG.standard_normal((3, 40)), RNG.standard_normal((40, 5))
    keep = RNG.random(40) < 0.5
    padded = np.where(keep, a, 0.0 * np.sign(a))  # zeros of both signs
    one = pair.matmul(OPS, [bits.cut(OPS, a[:, keep], 26)], [bits.cut(OPS, b[keep], 26)])
    two = pair.matmul(OPS, [bits.cut(OPS, padded, 26)], [bits.cut(OPS, b, 26)])
    assert one.hi.tobytes() == two.hi.tobytes() and one.lo.tobytes() == two.lo.tobytes()


def test_linear_is_the_true_product_rounded_once():
    x, w, b = (RNG.standard_normal(s).astype(np.float32) for s in [(2, 3, 11), (11, 7), (7,)])
    result = exact.linear(x, w, b)
    for i in np.ndindex(2, 3, 7):
        true = sum(
            (Fraction(float(u)) * Fraction(float(v)) for u, v in zip(x[i[:2]], w[:, i[2]], strict=True)), Fraction(0)
        )
        assert result[i] == np.float32(float(true + Fraction(float(b[i[2]]))))
