"""The reference kernel in both twins: the formula, its derivatives, and what must never leak."""

import functools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import standards
from maskattn.arrays import to_numpy
from maskattn.numerics import oracle
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, torch
from tests.twin import load, to_torch

NAMES = ("query", "key", "value", "bias", "sinks")


@functools.partial(jax.jit, static_argnames="options")
def run_jax(inputs, mask, d_output, d_lse, options):
    """One compilation for each set of shapes and options."""

    def forward(inputs):
        extra = {name: x for name, x in inputs.items() if name in NAMES[3:]}
        q, k, v = (inputs[name] for name in NAMES[:3])
        return maskattn_jax.attention(q, k, v, mask, **extra, **dict(options), kernel="reference", return_lse=True)

    out, pull = jax.vjp(forward, inputs)
    results = dict(zip(("output", "lse"), out, strict=True))
    if d_output is not None:
        d_lse = jnp.zeros(out[1].shape) if d_lse is None else d_lse
        gradients = pull((d_output.astype(out[0].dtype), d_lse.astype(out[1].dtype)))[0]
        results |= {f"d_{name}": g for name, g in gradients.items()}
    return results


def run(twin, inputs, mask=None, d_output=None, d_lse=None, **options):
    """Output, log-sum-exp and, given cotangents, the gradients, all in NumPy, of `attention` on NumPy inputs."""
    if twin.name == "jax":
        with jax.enable_x64(inputs["query"].dtype == np.float64):
            arrays = {name: jnp.asarray(x) for name, x in inputs.items()}
            results = run_jax(arrays, mask, d_output, d_lse, tuple(sorted(options.items())))
            return {name: np.asarray(x) for name, x in results.items()}
    given_names = [name for name in NAMES if name in inputs]
    tensors = {name: to_torch(inputs[name]).requires_grad_() for name in given_names}
    named = dict(tensors)
    q, k, v = (named.pop(name) for name in NAMES[:3])
    mask = torch.tensor(mask) if isinstance(mask, np.ndarray) else mask
    out = maskattn_torch.attention(q, k, v, mask, **named, **options, kernel="reference", return_lse=True)
    results = {"output": out[0], "lse": out[1]}
    if d_output is not None:
        d_lse = np.zeros(out[1].shape) if d_lse is None else d_lse
        cotangents = (to_torch(d_output).to(out[0].dtype), to_torch(d_lse).to(out[1].dtype))
        torch.autograd.backward(out, cotangents)
        results |= {f"d_{n}": x.grad for n, x in tensors.items()}
    return {name: to_numpy(x) for name, x in results.items()}


def draw(seed, dtype=np.float32, batch=2, q_len=5, kv_len=7, heads=6, kv_heads=2, head_dim=3, v_dim=5, spread=1.0):
    """Inputs, a bool mask [B, 1, L, S] with some empty rows, and cotangents."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (spread * rng.standard_normal(shape)).astype(dtype)

    inputs = {
        "query": normal(batch, q_len, heads, head_dim),
        "key": normal(batch, kv_len, kv_heads, head_dim),
        "value": normal(batch, kv_len, kv_heads, v_dim),
    }
    mask = rng.random((batch, 1, q_len, kv_len)) < 0.5
    mask[0, :, 1] = False
    return inputs, mask, normal(batch, q_len, heads, v_dim), normal(batch, q_len, heads)


def plain(inputs, mask, scale=None, softcap=None):
    """Softmax attention written once more, a loop over batch, heads and queries, in float64."""
    q, k, v = (inputs[name].astype(np.float64) for name in NAMES[:3])
    group = q.shape[2] // k.shape[2]
    mask = np.broadcast_to(mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    output = np.zeros((*q.shape[:3], v.shape[3]))
    lse = np.full(q.shape[:3], -np.inf)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    for b, i, h in np.ndindex(*q.shape[:3]):
        keys = np.flatnonzero(mask[b, h, i])
        if keys.size == 0:
            continue
        x = scale * (k[b, keys, h // group] @ q[b, i, h])
        x = x if softcap is None else softcap * np.tanh(x / softcap)
        x = x + (0 if "bias" not in inputs else inputs["bias"].astype(np.float64)[0, h, i, keys])
        total = np.exp(x).sum() + (np.exp(np.float64(inputs["sinks"][h])) if "sinks" in inputs else 0)
        output[b, i, h], lse[b, i, h] = (np.exp(x) / total) @ v[b, keys, h // group], np.log(total)
    return output, lse


def judge(results, inputs, mask, d_output=None, d_lse=None, wanted=None, **options):
    """Assert that every result is within Tier 2 of what is wanted: by default, of the oracle's."""
    dtype = inputs["query"].dtype.name
    arguments = [inputs[name] for name in NAMES[:3]]
    options |= {name: inputs[name] for name in NAMES[3:] if name in inputs}
    if wanted is None:
        wanted = dict(zip(("output", "lse"), oracle.attention(*arguments, mask, **options), strict=True))
    cotangents = {"d_output": d_output, "d_lse": d_lse}
    sizes = oracle.magnitudes(*arguments, mask, **cotangents, **options)._asdict()
    if d_output is not None:
        gradients = oracle.backward(*arguments, mask, **cotangents, **options)._asdict()
        wanted |= {f"d_{name}": g for name, g in gradients.items() if g is not None}
    assert results.keys() == wanted.keys()
    for name, want in wanted.items():
        got = results[name].astype(np.float64)
        magnitude = float(np.max(sizes[name.removeprefix("d_")], initial=0))
        limit = standards.tier2_limit(dtype, magnitude, sizes["logit"], max(mask.shape[2:]))
        if standards.is_narrow(dtype) and name != "lse":
            limit = limit + standards.value("tier2.half_ulp") * standards.ulp(want, dtype)
        finite = np.isfinite(want)
        assert np.array_equal(got[~finite], want[~finite], equal_nan=True), name
        assert np.all(np.abs(got - np.where(finite, want, 0))[finite] <= np.broadcast_to(limit, want.shape)[finite]), (
            name
        )


def test_the_formula(twin):
    inputs, mask, _, _ = draw(0, np.float64)
    rng = np.random.default_rng(1)
    for extra, scale, softcap in [
        ({}, None, None),
        ({}, -0.7, 1.5),
        ({"bias": rng.standard_normal((1, 6, 5, 7)), "sinks": rng.standard_normal(6)}, 2.0, 1.5),
    ]:
        inputs |= extra
        got = run(twin, inputs, mask, scale=scale, softcap=softcap)
        output, lse = plain(inputs, mask, scale, softcap)
        if extra:  # an empty row is its sink
            lse = np.where(np.isneginf(lse), inputs["sinks"], lse)
        judge(got, inputs, mask, wanted={"output": output, "lse": lse}, scale=scale, softcap=softcap)


@pytest.mark.parametrize(
    ("dtype", "empty_rows"),
    [
        ("float64", "zero"),
        ("float32", "zero"),
        ("float32", "mean"),
        ("float32", "nan"),
        ("bfloat16", "zero"),
        ("float16", "mean"),
    ],
)
def test_outputs_and_gradients_are_within_tier_2(twin, dtype, empty_rows):
    inputs, mask, d_output, d_lse = draw(2, np.dtype(dtype) if dtype != "bfloat16" else ml_dtypes.bfloat16)
    rng = np.random.default_rng(3)
    inputs["bias"] = rng.standard_normal((2, 1, 5, 7)).astype(inputs["query"].dtype)
    inputs["bias"][1, 0, 2] = -np.inf
    results = run(twin, inputs, mask, d_output, d_lse, softcap=3.0, empty_rows=empty_rows)
    judge(results, inputs, mask, d_output, d_lse, softcap=3.0, empty_rows=empty_rows)
    inputs["sinks"] = rng.standard_normal(6).astype(inputs["query"].dtype)
    results = run(twin, inputs, mask, d_output, d_lse, empty_rows=empty_rows)
    judge(results, inputs, mask, d_output, d_lse, empty_rows=empty_rows)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(1, 9)] * 4),
    st.sampled_from([0.1, 1.0, 6.0]),
)
def test_any_shape_is_within_tier_2_in_torch(seed, shape, spread):
    batch, kv_heads, group, q_len, kv_len, head_dim, v_dim = shape
    sizes = {"q_len": q_len, "kv_len": kv_len, "head_dim": head_dim, "v_dim": v_dim}
    inputs, mask, d_output, d_lse = draw(
        seed, batch=batch, heads=kv_heads * group, kv_heads=kv_heads, spread=spread, **{**sizes, "q_len": max(q_len, 2)}
    )
    judge(run(load("torch"), inputs, mask, d_output, d_lse), inputs, mask, d_output, d_lse)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 6.0]))
def test_any_values_are_within_tier_2_in_jax(seed, spread):
    inputs, mask, d_output, d_lse = draw(seed, spread=spread)
    judge(run(load("jax"), inputs, mask, d_output, d_lse), inputs, mask, d_output, d_lse)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_a_group_of_heads_reads_one_key_head(twin, kv_heads):
    inputs, mask, d_output, d_lse = draw(4, kv_heads=kv_heads)
    got = run(twin, inputs, mask, d_output, d_lse)
    judge(got, inputs, mask, d_output, d_lse)


@pytest.mark.parametrize("empty_rows", ["zero", "nan"])
def test_an_empty_row_gives_plus_zero_and_no_gradient(twin, empty_rows):
    inputs, mask, d_output, d_lse = draw(5, kv_len=1, q_len=2)
    mask[...] = False
    mask[1, :, 0] = True
    got = run(twin, inputs, mask, d_output, -abs(d_lse), empty_rows=empty_rows)
    empty = ~mask.any(-1)[:, 0]
    if empty_rows == "zero":
        assert not got["output"][empty].view(np.int32).any()
    else:
        assert np.isnan(got["output"][empty]).all()
    assert np.isneginf(got["lse"][empty]).all()
    assert not got["d_query"][empty].view(np.int32).any()
    assert not got["d_key"][0].view(np.int32).any() and not got["d_value"][0].view(np.int32).any()
    assert np.isfinite(got["d_value"]).all() and got["d_value"][1].any()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_masked_out_changes_no_bit(twin, softcap, bad):
    inputs, mask, d_output, d_lse = draw(6)
    mask[0, :, :, 2] = False
    mask[1, :, 3] = False
    inputs["bias"] = np.random.default_rng(7).standard_normal((2, 1, 5, 7)).astype(np.float32)
    spoiled = {name: x.copy() for name, x in inputs.items()}
    spoiled["key"][0, 2] = spoiled["value"][0, 2] = spoiled["query"][1, 3] = bad
    spoiled["bias"][~mask] = bad
    want = run(twin, inputs, mask, d_output, d_lse, softcap=softcap)
    got = run(twin, spoiled, mask, d_output, d_lse, softcap=softcap)
    for name, x in want.items():
        assert x.tobytes() == got[name].tobytes(), name
    # nor does the cotangent of a row that may attend to nothing
    d_output[0, 1] = bad
    d_lse[1, 3] = bad
    got = run(twin, inputs, mask, d_output, d_lse, softcap=softcap)
    for name, x in want.items():
        assert x.tobytes() == got[name].tobytes(), name


def test_what_is_not_finite_reaches_what_it_may_and_nothing_else(twin):
    inputs, mask, d_output, d_lse = draw(8, heads=2, kv_heads=2)
    want = run(twin, inputs, mask, d_output, d_lse)
    spoiled = inputs | {"value": inputs["value"].copy()}
    spoiled["value"][0, 4, 1, 3] = np.nan
    got = run(twin, spoiled, mask, d_output, d_lse)
    reached = np.zeros(want["output"].shape, bool)
    reached[0, :, 1, 3] = mask[0, 0, :, 4]
    assert reached.any() and not reached[0, :, 1, 3].all()
    assert np.array_equal(np.isnan(got["output"]), reached)
    assert got["output"][~reached].tobytes() == want["output"][~reached].tobytes()
    rows = reached.any(-1)
    assert np.array_equal(np.isnan(got["d_query"]).all(-1), rows)
    assert got["d_query"][~rows].tobytes() == want["d_query"][~rows].tobytes()
    keys = np.zeros(want["d_key"].shape[:3], bool)  # those that a spoiled row may read
    keys[0, :, 1] = mask[0, 0][mask[0, 0, :, 4]].any(0)
    assert got["d_key"][~keys].tobytes() == want["d_key"][~keys].tobytes()
    # the cotangent of one row reaches the keys of that row
    spoiled_d = d_output.copy()
    spoiled_d[1, 2, 0, 0] = np.nan
    got = run(twin, inputs, mask, spoiled_d, d_lse)
    keys = np.zeros(want["d_key"].shape[:3], bool)
    keys[1, :, 0] = mask[1, 0, 2]
    for name in ("d_key", "d_value"):
        assert np.array_equal(np.isnan(got[name]).any(-1), keys)
        assert got[name][~keys].tobytes() == want[name][~keys].tobytes()


def test_large_half_precision_logits_do_not_overflow(twin):
    inputs, mask, d_output, d_lse = draw(9, np.float16, head_dim=16)
    inputs["query"], inputs["key"] = 200 * inputs["query"], 200 * inputs["key"]
    assert np.abs(np.einsum("blhd,bshd->bhls", inputs["query"][:, :, :2], inputs["key"])).max() == np.inf
    got = run(twin, inputs, mask, d_output, d_lse, scale=0.01)
    assert all(np.isfinite(got[name]).all() for name in ("output", "d_query", "d_key", "d_value"))


@pytest.mark.parametrize("zero", [{"q_len": 0}, {"kv_len": 0}, {"batch": 0}])
@pytest.mark.parametrize("empty_rows", ["zero", "mean", "nan"])
def test_zero_sizes(twin, zero, empty_rows):
    sizes = {"batch": 2, "q_len": 3, "kv_len": 4} | zero
    rng = np.random.default_rng(10)
    inputs = {
        "query": rng.standard_normal((sizes["batch"], sizes["q_len"], 4, 3)).astype(np.float32),
        "key": rng.standard_normal((sizes["batch"], sizes["kv_len"], 2, 3)).astype(np.float32),
        "value": rng.standard_normal((sizes["batch"], sizes["kv_len"], 2, 5)).astype(np.float32),
    }
    d_output = np.ones((sizes["batch"], sizes["q_len"], 4, 5), np.float32)
    got = run(twin, inputs, None, d_output, empty_rows=empty_rows)
    assert got["output"].shape == d_output.shape
    assert np.isnan(got["output"]).all() if empty_rows == "nan" else not got["output"].view(np.int32).any()
    assert np.isneginf(got["lse"]).all() and got["lse"].shape == d_output.shape[:3]
    for name in ("query", "key", "value"):
        assert got[f"d_{name}"].shape == inputs[name].shape and not got[f"d_{name}"].any()


def test_torch_derivatives_of_first_and_second_order():
    inputs, mask, _, _ = draw(11, np.float64, q_len=3, kv_len=4, heads=2, kv_heads=1, head_dim=2, v_dim=3)
    rng = np.random.default_rng(12)
    inputs |= {"bias": rng.standard_normal((1, 2, 3, 4)), "sinks": rng.standard_normal(2)}
    tensors = [torch.tensor(inputs[name]).requires_grad_() for name in NAMES]

    def with_sinks(q, k, v, bias, sinks):
        options = {"softcap": 2.0, "return_lse": True}
        return maskattn_torch.attention(q, k, v, torch.tensor(mask), bias=bias, sinks=sinks, **options)

    def without(q, k, v, bias):
        return maskattn_torch.attention(q, k, v, torch.tensor(mask), bias=bias, empty_rows="mean")

    assert torch.autograd.gradcheck(with_sinks, tensors)
    assert torch.autograd.gradgradcheck(without, tensors[:4])


def test_jax_derivatives_of_second_order_are_those_of_torch():
    inputs, mask, _, _ = draw(13, np.float64, q_len=2, kv_len=3, heads=2, kv_heads=1, head_dim=2, v_dim=2)
    arrays = [inputs[name] for name in NAMES[:3]]

    def loss(attention, *qkv):
        return (attention(*qkv[:3], qkv[3], softcap=2.0, kernel="reference") ** 2).sum()

    with jax.enable_x64(True):
        gradient = jax.grad(lambda *qkv: loss(maskattn_jax.attention, *qkv, mask), argnums=(0, 1, 2))
        ours = jax.jit(jax.jacrev(gradient, argnums=(0, 1, 2)))(*(jnp.asarray(x) for x in arrays))
    theirs = torch.autograd.functional.hessian(
        lambda *qkv: loss(maskattn_torch.attention, *qkv, torch.tensor(mask)), tuple(torch.tensor(x) for x in arrays)
    )
    for i, j in np.ndindex(3, 3):
        np.testing.assert_allclose(
            np.asarray(ours[i][j]),
            theirs[i][j].numpy(),
            rtol=0,
            atol=standards.value("same.second") * standards.eps("float64"),
        )
