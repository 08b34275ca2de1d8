"""Dropout from a key: the draw, any part of it, and what attention makes of it in both twins."""

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.numerics import dropout, oracle, rng
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, torch, torch_dropout
from tests.twin import load

pytestmark = pytest.mark.hurried

ATTENTION = {"jax": maskattn_jax.attention, "torch": maskattn_torch.attention}
KEY = rng.fold_in(rng.key(11), 2**31 + 9)
SIZES = (3, 5, 37, 41)
SHARED = [(), ("batch",), ("heads",), ("batch", "heads")]


def made(twin, rate=0.3, key=KEY, shared=()):
    return twin.dropout.Dropout(rate, twin.array(key), shared)


def drawn_by_jax(rate=0.3, key=KEY, shared=()):
    shape = [1 if axis in shared else n for axis, n in zip(("batch", "heads", "", ""), SIZES, strict=True)]
    return np.asarray(jax.random.bernoulli(jax.random.wrap_key_data(key), np.float32(1 - rate), shape))


@pytest.mark.parametrize("shared", SHARED)
def test_the_draw_is_that_of_jax(shared):
    assert np.array_equal(dropout.dense(0.3, KEY, SIZES, shared), drawn_by_jax(shared=shared))


@pytest.mark.parametrize("shared", SHARED)
def test_the_draw_is_that_of_numpy(twin, shared):
    expected = dropout.dense(0.3, KEY, SIZES, shared)
    got = twin.dropout.dense(made(twin, shared=shared), SIZES)
    assert got.shape == expected.shape and np.array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("shared", SHARED)
def test_a_tile_is_that_tile_of_the_whole(twin, shared):
    whole = np.broadcast_to(dropout.dense(0.3, KEY, SIZES, shared), SIZES)
    one = made(twin, shared=shared)
    q, k = twin.array(np.arange(5, 11)[:, None]), twin.array(np.arange(7, 20))
    assert np.array_equal(np.asarray(twin.dropout.keep(one, 1, 2, q, k, SIZES)), whole[1, 2, 5:11, 7:20])
    # any indices that broadcast: heads in the middle, the last axis not the keys'
    h, q, k = (twin.array(x) for x in (np.arange(5)[:, None, None], np.array([3, 36]), np.array([[40], [0], [9]])))
    expected = whole[2][np.arange(5)[:, None, None], np.array([3, 36]), np.array([[40], [0], [9]])]
    assert np.array_equal(np.asarray(twin.dropout.keep(one, 2, h, q, k, SIZES)), expected)


def test_beyond_two_to_the_32_elements(twin):
    sizes = (7, 65537, 131071, 100003)
    numbers = np.random.default_rng(0)
    index = [np.append(numbers.integers(0, n, 300), n - 1) for n in sizes]
    flat = [((b * sizes[1] + h) * sizes[2] + q) * sizes[3] + k for b, h, q, k in np.stack(index, -1).tolist()]
    expected = [bool(rng.bernoulli(KEY, 0.7, start=place)) for place in flat]
    assert max(flat) > 2**52
    got = twin.dropout.keep(made(twin), *(twin.array(x) for x in index), sizes)
    assert np.asarray(got).tolist() == expected


def test_a_draw_of_many_pieces_in_torch():
    sizes = (1, 2, 700, 500)
    expected = dropout.dense(0.3, KEY, sizes)
    assert sizes[1] * sizes[2] * sizes[3] > 4 * 2**17
    assert np.array_equal(torch_dropout.dense(made(load("torch")), sizes).numpy(), expected)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_the_rate_of_what_is_dropped(rate):
    sizes = (4, 8, 128, 256)
    n = np.prod(sizes)
    dropped = n - dropout.dense(rate, 3, sizes).sum()
    assert abs(dropped - n * rate) < 4 * np.sqrt(n * rate * (1 - rate))


def test_keys_are_independent():
    """Draws under different keys, and neighbouring places under one, agree as often as independent ones do."""
    n, p = 2**20, 0.3
    draws = [
        dropout.dense(p, key, (1, 1, 1024, 1024)).ravel()
        for key in (3, 4, rng.fold_in(rng.key(3), 1), rng.split(rng.key(3))[0])
    ]
    agree = p * p + (1 - p) * (1 - p)
    pairs = [(draws[i], draws[j]) for i in range(4) for j in range(i)]
    pairs += [(draw[1:], draw[:-1]) for draw in draws] + [(draw[1024:], draw[:-1024]) for draw in draws]
    for one, two in pairs:
        assert abs((one == two).sum() - len(one) * agree) < standards.value("draws.errors") * np.sqrt(
            n * agree * (1 - agree)
        )
        assert not np.array_equal(one, two)


def problem(dtype=np.float32):
    numbers = np.random.default_rng(1)
    shapes = [(2, 9, 4, 3), (2, 7, 2, 3), (2, 7, 2, 5), (2, 9, 4, 5)]
    return [numbers.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("shared", [pytest.param((), marks=pytest.mark.slow_in("jax")), ("batch", "heads")])
def test_attention_drops_what_the_oracle_drops(twin, shared):
    q, k, v, d = problem(np.float64)
    mask = masks.Causal(2)
    kept = {"keep": dropout.dense(0.4, 8, (2, 4, 9, 7), shared), "dropout_rate": 0.4}
    expected = oracle.attention(q, k, v, mask.dense(9, 7), **kept)
    grads = oracle.backward(q, k, v, mask.dense(9, 7), d_output=d, **kept)
    options = {"dropout_rate": 0.4, "dropout_broadcast": shared, "kernel": "reference", "return_lse": True}
    with twin.x64():
        if twin.name == "jax":
            key = jax.random.key(8)
            f = jax.jit(lambda key, *x: maskattn_jax.attention(*x, mask, dropout_key=key, **options))
            (out, lse), pull = jax.vjp(lambda *x: f(key, *x), *map(jnp.asarray, (q, k, v)))
            got = pull((jnp.asarray(d), jnp.zeros_like(lse)))
        else:
            tensors = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
            out, lse = maskattn_torch.attention(*tensors, mask, dropout_key=8, **options)
            got = torch.autograd.grad(out, tensors, torch.from_numpy(d))
            out, lse = out.detach(), lse.detach()
    sizes = oracle.magnitudes(q, k, v, mask.dense(9, 7), d_output=d, **kept)
    rights = (expected.output, expected.lse, *grads[:3])
    for ours, right, size in zip((out, lse, *got), rights, sizes[1:6], strict=True):
        limit = standards.tier2_limit("float64", float(size.max()), sizes.logit, 9)
        assert np.abs(np.asarray(ours) - right).max() <= limit
    without = oracle.attention(q, k, v, mask.dense(9, 7))
    np.testing.assert_array_equal(expected.lse, without.lse)
    assert np.abs(expected.output - without.output).max() > 0.1


def test_every_form_of_a_key_is_the_same_key(twin):
    q, k, v, _ = (twin.array(x) for x in problem())
    keys = [7, np.int64(7), rng.key(7), twin.array(rng.key(7)), *([jax.random.key(7)] if twin.name == "jax" else [])]
    results = [twin.attention(q, k, v, dropout_rate=0.5, dropout_key=key, kernel="reference") for key in keys]
    other = twin.attention(q, k, v, dropout_rate=0.5, dropout_key=8, kernel="reference")
    assert all(np.array_equal(np.asarray(results[0]), np.asarray(x)) for x in results)
    assert not np.array_equal(np.asarray(results[0]), np.asarray(other))


def test_a_dropped_value_that_is_not_a_number_reaches_nothing(twin):
    q, k, v, _ = problem()
    keep = dropout.dense(0.5, 7, (2, 4, 9, 7))
    v[0, 3] = np.nan
    for kernel in ("reference", "exact"):
        out = twin.attention(*(twin.array(x) for x in (q, k, v)), dropout_rate=0.5, dropout_key=7, kernel=kernel)
        reached = np.isnan(np.asarray(out)).any(axis=-1)
        assert np.array_equal(reached[0], keep[0, :, :, 3].T) and not reached[1].any()


def test_a_rate_of_zero_needs_no_key_and_changes_nothing(twin):
    q, k, v, _ = (twin.array(x) for x in problem())
    plain = np.asarray(twin.attention(q, k, v))
    assert np.array_equal(plain, np.asarray(twin.attention(q, k, v, dropout_rate=0.0, dropout_key=3)))


BAD = [
    ({"dropout_rate": 0.1}, ValueError, "dropout_key must be given where dropout_rate is above 0, got None and 0.1"),
    ({"dropout_rate": 1.0, "dropout_key": 0}, ValueError, r"dropout_rate must lie in \[0, 1\), got 1.0"),
    ({"dropout_rate": -0.1, "dropout_key": 0}, ValueError, r"dropout_rate must lie in \[0, 1\), got -0.1"),
    ({"dropout_rate": float("nan"), "dropout_key": 0}, ValueError, r"dropout_rate must lie in \[0, 1\), got nan"),
    ({"dropout_rate": "0.1", "dropout_key": 0}, TypeError, "dropout_rate must be a number, got '0.1'"),
    ({"dropout_rate": 0.1, "dropout_key": -1}, ValueError, r"dropout_key must be a seed in \[0, 2\*\*31\).*got -1"),
    ({"dropout_rate": 0.1, "dropout_key": 2**31}, ValueError, "dropout_key .*got 2147483648"),
    ({"dropout_rate": 0.1, "dropout_key": 1.0}, TypeError, "dropout_key .*got 1.0"),
    ({"dropout_rate": 0.1, "dropout_key": True}, TypeError, "dropout_key .*got True"),
    ({"dropout_rate": 0.1, "dropout_key": np.zeros(2)}, TypeError, r"dropout_key .*got float64\[2\]"),
    ({"dropout_rate": 0.1, "dropout_key": np.zeros(3, np.uint32)}, ValueError, r"dropout_key .*got shape \(3,\)"),
    ({"dropout_rate": 2.0, "dropout_key": -1}, ValueError, "(?s)2 problems.*dropout_rate.*dropout_key"),
]


@pytest.mark.parametrize(("options", "error", "says"), BAD)
def test_bad_input_is_named(twin, options, error, says):
    q, k, v, _ = (twin.array(x) for x in problem())
    with pytest.raises(error, match=says):
        twin.attention(q, k, v, **options)


def test_keys_of_other_kinds_are_refused():
    q, k, v, _ = problem()
    for key, says in [
        (np.zeros(3, np.uint32), r"got shape \(3,\)$"),
        (jax.random.split(jax.random.key(0)), r"got key<fry>\[2\]$"),
    ]:
        with pytest.raises(ValueError, match=says):
            maskattn_jax.attention(q, k, v, dropout_rate=0.1, dropout_key=key)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    with pytest.raises(TypeError, match="dropout_key must be a seed or two uint32 words of PyTorch or NumPy"):
        maskattn_torch.attention(*tensors, dropout_rate=0.1, dropout_key=jax.random.key(0))
    with pytest.raises(TypeError, match="dropout_key must be a seed, two uint32 words of JAX or NumPy"):
        maskattn_jax.attention(q, k, v, dropout_rate=0.1, dropout_key=torch.zeros(2).to(torch.uint32))


def test_the_core_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"dropout: 2 problems:(?s:.*)dropout_rate(?s:.*)dropout_broadcast"):
        dropout.dense(1.5, 0, SIZES, ("rows",))


def test_it_is_a_pytree_whose_leaf_is_the_key(twin):
    one = made(twin, shared=("heads",))
    if twin.name == "jax":
        leaves, tree = jax.tree.flatten(one)
        again = jax.tree.unflatten(tree, leaves)
    else:
        leaves, spec = torch.utils._pytree.tree_flatten(one)
        again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert len(leaves) == 1 and leaves[0] is one.words
    assert (again.rate, again.shared) == (one.rate, one.shared) and again.words is one.words


def test_the_operator_keeps_torchs_rules():
    rows, columns = torch.arange(3)[:, None] * 5, torch.arange(5)
    torch.library.opcheck(torch_dropout._keep.operator, (load("torch").array(KEY), rows, columns, 0.3, False))
    torch.library.opcheck(torch_dropout._keep.operator, (load("torch").array(KEY), rows + 2**33, columns, 0.3, True))
