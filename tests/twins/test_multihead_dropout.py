"""Dropout in the modules: one key drops the same numbers in PyTorch, NNX and Linen, and each says which key it was."""

import numpy as np
import pytest

from maskattn import masks
from maskattn.config import AttentionConfig
from maskattn.numerics import exact, rng
from tests.frameworks import (
    jax,
    jax_dropout,
    jax_params,
    jax_rng,
    jnp,
    maskattn_jax,
    maskattn_torch,
    nnx,
    optional,
    torch,
    torch_dropout,
    torch_params,
)

pytestmark = pytest.mark.hurried

linen = optional("maskattn_jax.linen")

CONFIG = AttentionConfig(12, 3, dropout_rate=0.3, out_dropout_rate=0.2)
X = np.random.default_rng(0).standard_normal((2, 7, 12)).astype(np.float32)
MASK = masks.Causal()


def modules(config=CONFIG, rngs=None):
    """The three with the same weights: PyTorch's, NNX's, and Linen's with its variables."""
    of_nnx = maskattn_jax.MultiHeadAttention(config, rngs=rngs or nnx.Rngs(params=0, dropout=1))
    weights = jax_params.dump(of_nnx)
    of_torch = maskattn_torch.MultiHeadAttention(config)
    torch_params.load(of_torch, weights)
    tree = {}
    for name, array in weights.items():
        layer, leaf = name.split(".")
        tree.setdefault(layer, {})[leaf] = jnp.asarray(array)
    return of_torch, of_nnx, (linen.MultiHeadAttention(config), {"params": tree})


def run_torch(module, key, **options):
    return module(torch.from_numpy(X), mask=MASK, dropout_key=key, **options).detach().numpy()


def test_one_key_drops_the_same_in_all_three():
    of_torch, of_nnx, (of_linen, variables) = modules()
    options = {"mask": MASK, "kernel": "exact"}
    results = [
        run_torch(of_torch, 4, kernel="exact"),
        np.asarray(of_nnx(X, dropout_key=jax.random.key(4), **options)),
        np.asarray(of_linen.apply(variables, X, dropout_key=rng.key(4), deterministic=False, **options)),
    ]
    dropped = ~rng.bernoulli(rng.fold_in(rng.key(4), 1), 0.8, X.shape)
    for result in results:
        assert np.array_equal(result == 0, dropped)
        assert result.tobytes() == results[0].tobytes()
    assert not np.array_equal(run_torch(of_torch, 5, kernel="exact"), results[0])


def test_each_rate_has_a_draw_of_its_own():
    """The weights' draw does not change with the output's rate, and neither is drawn with the module's key itself."""
    both, weights_only = (
        AttentionConfig(12, 3, dropout_rate=0.3, out_dropout_rate=0.2),
        AttentionConfig(12, 3, dropout_rate=0.3),
    )
    of_torch = modules(both)[0]
    other = maskattn_torch.MultiHeadAttention(weights_only)
    other.load_state_dict(of_torch.state_dict())
    kept = rng.bernoulli(rng.fold_in(rng.key(4), 1), 0.8, X.shape)
    alone = run_torch(other, 4, kernel="exact")
    np.testing.assert_array_equal(run_torch(of_torch, 4, kernel="exact"), exact.drop(alone, kept, 0.2))
    first, second = jax_dropout.module_keys(jax.random.key(4))
    assert not np.array_equal(first, second) and not np.array_equal(first, rng.key(4))
    for ours, theirs in zip(torch_dropout.module_keys(4), (first, second), strict=True):
        assert np.array_equal(ours, np.asarray(theirs))
    assert np.array_equal(rng.split(rng.key(4)), [first, second])  # a split into two is the same


def test_train_and_eval():
    of_torch, of_nnx, (of_linen, variables) = modules()
    trained = run_torch(of_torch, 4)
    assert np.array_equal(trained, run_torch(of_torch.eval(), 4, deterministic=False))
    assert not np.array_equal(trained, run_torch(of_torch, None))
    calm = np.asarray(of_nnx(X, mask=MASK, deterministic=True))
    of_nnx.eval()
    assert np.array_equal(calm, of_nnx(X, mask=MASK))
    assert np.array_equal(calm, of_linen.apply(variables, X, mask=MASK, deterministic=True))


def test_nnx_takes_its_usual_rngs_and_says_which_key_it_used():
    of_torch, of_nnx, _ = modules()

    @nnx.capture(nnx.Intermediate)
    def forward(module):
        return module(X, mask=MASK, kernel="exact")

    seen = []
    for _ in range(2):
        result, sown = forward(of_nnx)
        (key,) = sown["dropout_key"]
        seen.append(np.asarray(key))
        assert np.array_equal(run_torch(of_torch, seen[-1], kernel="exact"), result)
    assert not np.array_equal(*seen)
    handed = of_nnx(X, mask=MASK, kernel="exact", dropout_key=nnx.Rngs(dropout=3))
    key = np.asarray(jax_rng.words(nnx.Rngs(dropout=3).dropout()))
    assert np.array_equal(run_torch(of_torch, key, kernel="exact"), handed)
    stepped = nnx.jit(lambda module: module(X, mask=MASK))(of_nnx)  # the stream moves on inside nnx.jit
    assert not np.array_equal(stepped, nnx.jit(lambda module: module(X, mask=MASK))(of_nnx))


def test_nnx_makes_the_same_parameters_with_dropout_and_without():
    plain = maskattn_jax.MultiHeadAttention(AttentionConfig(12, 3), rngs=nnx.Rngs(0))
    dropping = maskattn_jax.MultiHeadAttention(CONFIG, rngs=nnx.Rngs(0))
    for name, array in jax_params.dump(plain).items():
        assert np.array_equal(array, jax_params.dump(dropping)[name])
    assert plain.rngs is None and isinstance(dropping.rngs, nnx.RngStream)
    assert dropping(X).shape == X.shape  # "default" stands in for "dropout"
    with pytest.raises(ValueError, match="dropout_key must be given"):
        maskattn_jax.MultiHeadAttention(CONFIG, rngs=nnx.Rngs(params=0))(X)


def test_linen_takes_its_usual_rngs_and_says_which_key_it_used():
    of_torch, _, (of_linen, variables) = modules()
    options = {"deterministic": False, "rngs": {"dropout": jax.random.key(9)}, "mask": MASK, "kernel": "exact"}
    result, sown = of_linen.apply(variables, X, mutable=["intermediates"], **options)
    (key,) = sown["intermediates"]["dropout_key"]
    assert np.array_equal(run_torch(of_torch, np.asarray(key), kernel="exact"), result)
    assert np.array_equal(of_linen.apply(variables, X, **options), result)


@pytest.mark.parametrize("with_qkv", [True, False])
def test_the_seed_module(with_qkv):
    arguments = {"attn_drop": 0.3, "proj_drop": 0.2, "with_qkv": with_qkv}
    of_torch = maskattn_torch.Attention(12, 3, **arguments)
    of_nnx = maskattn_jax.Attention(12, 3, **arguments, rngs=nnx.Rngs(0))
    jax_params.load(of_nnx, torch_params.dump(of_torch))
    keep = np.arange(7)[None] < np.array([[4], [7]])
    options = {"dropout_key": 6, "kernel": "exact"}
    one = of_torch(torch.from_numpy(X), torch.from_numpy(keep), **options).detach().numpy()
    assert np.array_equal(one, of_nnx(X, keep, **options))
    dropped = ~rng.bernoulli(rng.fold_in(rng.key(6), 1), 0.8, X.shape)
    assert np.array_equal(one == 0, dropped) is with_qkv  # proj_drop stands behind the projection
    calm = of_torch.eval()(torch.from_numpy(X), torch.from_numpy(keep), kernel="exact")
    assert not np.array_equal(one, calm.detach().numpy())


# Dynamo itself instantiates the autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kernel", ["reference", "exact"])
def test_a_compiled_training_step(kernel):
    of_torch = modules()[0]
    x, key = torch.from_numpy(X), torch.from_numpy(rng.key(4))

    def step(x, key):
        return of_torch(x, mask=MASK, dropout_key=key, kernel=kernel).sum()

    step(x, key).backward()
    expected = of_torch.qkv.weight.grad.clone()
    of_torch.zero_grad()
    torch.compile(step, fullgraph=True, backend="aot_eager")(x, key).backward()
    assert torch.equal(of_torch.qkv.weight.grad, expected)


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "float16"])
def test_exact_drop_has_the_same_bits_and_is_its_own_gradient(name):
    import ml_dtypes

    from maskattn_jax.kernels import exact as jax_exact
    from maskattn_jax.testing.adapter import from_numpy as to_jax
    from maskattn_torch.kernels import exact as torch_exact
    from maskattn_torch.testing.adapter import from_numpy, to_numpy

    dtype = np.dtype(getattr(ml_dtypes, name, name))
    x = np.random.default_rng(3).standard_normal((3, 50)).astype(dtype)
    x[0, :4] = np.array([np.nan, np.inf, -np.inf, -0.0]).astype(dtype)
    d = np.random.default_rng(4).standard_normal(x.shape).astype(dtype)
    keep = rng.bernoulli(rng.key(1), 0.7, x.shape)
    expected, gradient = exact.drop(x, keep, 0.3), exact.drop(d, keep, 0.3)
    right = np.where(keep, x.astype(np.longdouble) / (1.0 - 0.3), 0).astype(dtype)
    assert np.array_equal(expected, right, equal_nan=True) or name == "float64"
    np.testing.assert_array_equal(np.isfinite(expected), np.isfinite(right))
    with jax.enable_x64(name == "float64"):
        out, pull = jax.vjp(lambda x: jax_exact.drop(x, jnp.asarray(keep), 0.3), to_jax(x))
        got = [np.asarray(out), np.asarray(pull(to_jax(d))[0])]
    tensor = from_numpy(x).requires_grad_()
    out = torch_exact.drop(tensor, torch.from_numpy(keep), 0.3)
    got += [to_numpy(out), to_numpy(torch.autograd.grad(out, tensor, from_numpy(d))[0])]
    for ours, theirs in zip(got, [expected, gradient] * 2, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    torch.library.opcheck(torch_exact._drop.operator, (from_numpy(d), torch.from_numpy(keep), 0.7))
