"""kernel="blockwise" in JAX where people use it: odd lengths, transformations of JAX, garbage in padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskattn_jax
from maskattn import masks, standards
from maskattn.numerics import oracle

RNG = np.random.default_rng(11)
attend = functools.partial(maskattn_jax.attention, kernel="blockwise")


def arrays(batch, q_len, kv_len, heads=2, kv_heads=1, dim=8):
    sizes = ((batch, q_len, heads, dim), (batch, kv_len, kv_heads, dim), (batch, kv_len, kv_heads, dim))
    return [RNG.standard_normal(size, np.float32) for size in sizes]


def held(given, mask, out, grads, cotangent):
    """Whether output and gradients are within the limits of the oracle."""
    batch, q_len, heads, _ = given[0].shape
    dense = np.broadcast_to(
        mask.dense(q_len, given[1].shape[1], batch, heads), (batch, heads, q_len, given[1].shape[1])
    )
    right = oracle.backward(*given, dense, d_output=cotangent, d_lse=None)
    found = oracle.magnitudes(*given, dense, d_output=cotangent, d_lse=None)
    length = max(dense.shape[2:])
    results = {"output": (out, oracle.attention(*given, dense).output)}
    results |= {name: (grad, getattr(right, name)) for name, grad in zip(("query", "key", "value"), grads, strict=True)}
    for name, (got, wanted) in results.items():
        most = standards.tier2_limit("float32", float(getattr(found, name).max()), found.logit, length)
        assert np.abs(np.asarray(got, np.float64) - wanted).max() <= most, name
    return True


@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 1), (2, 3), (3, 2), (127, 129), (129, 127), (1, 1000), (1000, 700)], ids=str
)
def test_odd_lengths_forward_and_backward(q_len, kv_len):
    given = arrays(2, q_len, kv_len)
    cotangent = RNG.standard_normal(given[0].shape, np.float32)
    lengths = np.array([kv_len, max(1, kv_len // 3)])

    @jax.jit
    def both(q, k, v, lengths):
        mask = (masks.Causal(kv_len // 2) & masks.KeyPadding(lengths)) | masks.SlidingWindow(5, 70)
        out, pull = jax.vjp(lambda *x: attend(*x, mask), q, k, v)
        return out, pull(cotangent)

    mask = (masks.Causal(kv_len // 2) & masks.KeyPadding(lengths)) | masks.SlidingWindow(5, 70)
    assert held(given, mask, *both(*given, lengths), cotangent)


def test_vmap_scan_and_remat_give_what_a_plain_call_gives():
    q, k, v = (jnp.asarray(x) for x in arrays(3, 40, 56))
    lengths = jnp.asarray([56, 9, 30])

    def one(q, k, v, n):
        return attend(q[None], k[None], v[None], masks.KeyPadding(n[None]) & masks.Causal(16))[0]

    def loss(function):
        return lambda q, k, v: (function(q, k, v, lengths) ** 2).sum()

    plain = jnp.stack([one(*x) for x in zip(q, k, v, lengths, strict=True)])
    ways = {
        "vmap": jax.vmap(one),
        "scan": lambda *x: jax.lax.scan(lambda carry, x: (carry, one(*x)), None, x)[1],
        "remat": jax.vmap(jax.checkpoint(one)),
    }
    wanted = jax.grad(loss(lambda *x: jnp.stack([one(*y) for y in zip(*x, strict=True)])), (0, 1, 2))(q, k, v)
    for name, way in ways.items():
        np.testing.assert_allclose(
            jax.jit(way)(q, k, v, lengths), plain, rtol=0, atol=standards.value("same.mapped"), err_msg=name
        )
        for got, right in zip(jax.jit(jax.grad(loss(way), (0, 1, 2)))(q, k, v), wanted, strict=True):
            np.testing.assert_allclose(got, right, rtol=0, atol=standards.value("same.gradient"), err_msg=name)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf], ids=str)
def test_garbage_in_padding_reaches_nothing(garbage):
    q, k, v = arrays(2, 600, 600)
    lengths = np.array([600, 300])
    beyond = (np.arange(600) >= lengths[:, None])[..., None, None]

    @jax.jit
    def both(q, k, v, lengths):
        out, pull = jax.vjp(lambda *x: attend(*x, masks.Causal() & masks.KeyPadding(lengths)), q, k, v)
        return out, pull(jnp.ones_like(out))

    clean = both(q, np.where(beyond, 0, k), np.where(beyond, 0, v), lengths)
    dirty = both(
        q, np.where(beyond, garbage, k).astype(np.float32), np.where(beyond, garbage, v).astype(np.float32), lengths
    )
    for one, other in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, rtol=0, atol=standards.value("same.tiles"))
    d_key = np.asarray(dirty[1][1])
    assert (d_key[np.broadcast_to(beyond, d_key.shape)] == 0).all()


@pytest.mark.parametrize("policy", ["zero", "nan"])
def test_queries_that_reach_nothing_may_hold_anything(policy):
    q, k, v = arrays(2, 40, 40)
    mask = masks.QueryMask(np.arange(40)[None] % 5 > 0) & masks.SlidingWindow(20)

    @jax.jit
    def both(q, k, v):
        attention = functools.partial(attend, mask=mask, empty_rows=policy, softcap=2.0, blocks=(16, 16))
        out, pull = jax.vjp(attention, q, k, v)
        return out, *pull(jnp.ones_like(out))

    clean = both(q, k, v)
    for garbage in (np.nan, np.inf, 3e38):
        dirty = q.copy()
        dirty[:, ::5] = garbage
        results = both(dirty, k, v)
        assert all(np.isfinite(x).all() for x in results[1:])
        for one, other in zip(clean, results, strict=True):
            np.testing.assert_array_equal(one, other)
