"""Exact attention in NumPy: right to 0.51 ulp, and the relations that hold bit for bit."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import standards
from maskattn.numerics import dropout, exact, oracle

RNG = np.random.default_rng(21)


def _normal(*shape, dtype=np.float32, spread=1.0):
    return (RNG.standard_normal(shape) * spread).astype(dtype)


def _all(q, k, v, allowed, d_output, **options):
    out, lse = exact.attention(q, k, v, allowed, **options)
    return out, lse, *exact.attention_backward(q, k, v, allowed, d_output, **options)[:3]


def _same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize(("softcap", "bias", "sinks"), [(None, False, False), (2.5, True, False), (None, True, True)])
@pytest.mark.parametrize(("empty_rows", "rate"), [("zero", 0.0), ("zero", 0.3), ("mean", 0.3), ("nan", 0.3)])
def test_float32_is_the_truth_rounded_once(spread, softcap, bias, sinks, empty_rows, rate):
    batch, q_len, kv_len, heads, kv_heads = 2, 13, 17, 6, 3
    q, k, v = _normal(batch, q_len, heads, 5, spread=spread), _normal(batch, kv_len, kv_heads, 5), None
    v, d_output = _normal(batch, kv_len, kv_heads, 7), _normal(batch, q_len, heads, 7)
    d_lse = _normal(batch, q_len, heads)
    allowed = RNG.random((batch, 1, q_len, kv_len)) < 0.5
    allowed[0, 0, 2], allowed[1, 0, 3], allowed[1, 0, 3, 4] = False, False, True
    options = {
        "softcap": softcap,
        "bias": _normal(1, heads, 1, kv_len) if bias else None,
        "sinks": _normal(heads) if sinks else None,
        "empty_rows": empty_rows,
    }
    keys = {"dropout_key": 9, "dropout_broadcast": ("heads",)} if rate else {}
    got = (*exact.attention(q, k, v, allowed, **options, dropout_rate=rate, **keys),)
    got += exact.attention_backward(q, k, v, allowed, d_output, d_lse, **options, dropout_rate=rate, **keys)
    if rate:
        options |= {"keep": dropout.dense(rate, 9, (batch, heads, q_len, kv_len), ("heads",)), "dropout_rate": rate}
    fine = {"dtype": np.longdouble, **options}
    true = (*oracle.attention(q, k, v, allowed, **fine),)
    true += (*oracle.backward(q, k, v, allowed, d_output=d_output, d_lse=d_lse, **fine),)
    sizes = oracle.magnitudes(q, k, v, allowed, d_output=d_output, d_lse=d_lse, **options)[1:]
    for x, t, a in zip(got, true, sizes, strict=True):
        if x is None:
            continue
        a = np.nan_to_num(a)
        finite = np.isfinite(t.astype(np.float64))
        assert np.array_equal(np.isfinite(x), finite)
        x, t = x[finite].astype(np.longdouble), t[finite]
        ulp = np.spacing(np.maximum(np.abs(t), 2.0**-26 * a.max()).astype(np.float32)).astype(np.longdouble)
        assert np.max(np.abs(x - t) / ulp) <= 0.51
        assert not x[t == 0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.float16])
def test_padding_packing_slicing_and_decoding_change_no_bit(dtype):
    n, extra = 9, 5
    q, k, v, d = (_normal(1, n, 2, 3, dtype=dtype) for _ in range(4))
    causal = np.tril(np.ones((n, n), bool))[None, None]
    alone = _all(q, k, v, causal, d)

    def pad(x, left, right):
        junk = _normal(1, left + right, 2, 3, dtype=dtype)
        return np.concatenate([junk[:, :left], x, junk[:, left:]], axis=1)

    for left, right in [(0, extra), (extra, 0), (2, 3)]:
        inside = np.s_[:, left : left + n]
        allowed = np.zeros((1, 1, n + extra, n + extra), bool)
        allowed[..., left : left + n, left : left + n] = causal
        if left:  # another document in front of this one
            allowed[..., :left, :left] = True
        padded = _all(*(pad(x, left, right) for x in (q, k, v)), allowed, pad(d, left, right))
        _same(alone, [x[inside] for x in padded])

    prefix = _all(q[:, :4], k[:, :4], v[:, :4], causal[..., :4, :4], d[:, :4])
    _same([x[:, :4] for x in alone[:2]], prefix[:2])
    for i in range(n):
        step = exact.attention(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])
        _same([x[:, i : i + 1] for x in alone[:2]], step)


def test_batch_heads_and_queries_permute_and_slice():
    q, k, v, d = (_normal(3, 7, 4, 5) for _ in range(4))
    allowed = RNG.random((3, 4, 7, 7)) < 0.6
    whole = _all(q, k, v, allowed, d)
    b, h, i = RNG.permutation(3), RNG.permutation(4), RNG.permutation(7)
    _same([x[b] for x in whole], _all(q[b], k[b], v[b], allowed[b], d[b]))
    _same([x[1:2] for x in whole], _all(q[1:2], k[1:2], v[1:2], allowed[1:2], d[1:2]))
    _same([x[:, :, h] for x in whole], _all(*(x[:, :, h] for x in (q, k, v)), allowed[:, h], d[:, :, h]))
    moved = _all(q[:, i], k, v, allowed[:, :, i], d[:, i])
    _same([x[:, i] for x in whole[:3]], moved[:3])  # dK and dV sum over queries in order


def test_grouped_heads_are_repeated_heads():
    q, k, v = _normal(2, 5, 6, 3), _normal(2, 7, 2, 3), _normal(2, 7, 2, 4)
    _same(exact.attention(q, k, v), exact.attention(q, np.repeat(k, 3, axis=2), np.repeat(v, 3, axis=2)))


def test_minus_infinity_in_the_bias_is_the_mask():
    q, k, v, d = (_normal(2, 6, 2, 3) for _ in range(4))
    allowed = RNG.random((2, 1, 6, 6)) < 0.5
    bias = np.where(allowed, np.float32(0), np.float32(-np.inf))
    _same(_all(q, k, v, allowed, d), _all(q, k, v, None, d, bias=bias))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_forbidden_never_leaks_and_what_is_allowed_does(bad):
    q, k, v, d = (_normal(2, 6, 2, 3) for _ in range(4))
    allowed = np.tril(np.ones((6, 6), bool))[None, None]
    clean = _all(q, k, v, allowed, d)
    for name in ("key", "value", "query", "d_output"):
        inputs = {"query": q.copy(), "key": k.copy(), "value": v.copy(), "d_output": d.copy()}
        inputs[name][0, 3, 1] = bad
        dirty = _all(inputs["query"], inputs["key"], inputs["value"], allowed, inputs["d_output"])
        touched = [np.zeros(x.shape, bool) for x in clean]  # output, lse, dq, dk, dv
        if name == "key":
            touched[0][0, 3:, 1] = touched[1][0, 3:, 1] = touched[2][0, 3:, 1] = True
            touched[3][0, :, 1] = touched[4][0, :, 1] = True
        elif name == "value":
            touched[0][0, 3:, 1] = touched[2][0, 3:, 1] = touched[3][0, :, 1] = True
        elif name == "query":
            touched[0][0, 3, 1] = touched[1][0, 3, 1] = touched[2][0, 3, 1] = True
            touched[3][0, :4, 1] = touched[4][0, :4, 1] = True
        else:
            touched[2][0, 3, 1] = touched[3][0, :4, 1] = touched[4][0, :4, 1] = True
        for x, y, t in zip(clean, dirty, touched, strict=True):
            assert x[~t].tobytes() == y[~t].tobytes()
            assert np.isnan(y[t]).all()


def test_empty_rows():
    q, k, v, d = (_normal(1, 3, 2, 3) for _ in range(4))
    allowed = np.ones((1, 1, 3, 3), bool)
    allowed[..., 1, :] = False
    out, lse, d_q, _, _ = _all(q, k, v, allowed, d)
    assert out[0, 1].tobytes() == bytes(24) and d_q[0, 1].tobytes() == bytes(24) and np.all(lse[0, 1] == -np.inf)
    out, lse, d_q, d_k, d_v = _all(q, k, v, allowed, d, empty_rows="mean")
    np.testing.assert_allclose(out[0, 1], v[0].mean(axis=0), rtol=standards.value("same.compiled"))
    assert d_q[0, 1].tobytes() == bytes(24)
    out, *grads = _all(q, k, v, allowed, d, empty_rows="nan")
    assert np.isnan(out[0, 1]).all() and all(np.isfinite(g).all() for g in grads[1:])
    sinks = _normal(2)
    out, lse = exact.attention(q, k, v, allowed, sinks=sinks, empty_rows="mean")
    assert out[0, 1].tobytes() == bytes(24) and lse[0, 1].tobytes() == sinks.tobytes()


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 0, 3), (1, 2, 0)])
def test_nothing_to_attend(shape):
    batch, q_len, kv_len = shape
    q, k, v, d = (
        _normal(batch, q_len, 2, 3),
        *(_normal(batch, kv_len, 2, 3) for _ in range(2)),
        _normal(batch, q_len, 2, 3),
    )
    out, lse, d_q, d_k, d_v = _all(q, k, v, None, d)
    assert out.shape == d.shape and not out.any() and np.all(lse == -np.inf)
    assert d_q.shape == q.shape and d_k.shape == k.shape and d_v.shape == v.shape
