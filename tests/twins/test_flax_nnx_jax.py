"""`flax.nnx.MultiHeadAttention` and ours with the same arguments: parameters, outputs, dropout, decoding, shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskattn import masks, standards
from maskattn_jax import flax_nnx

pytestmark = pytest.mark.hurried

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 7, 12), np.float32)
MEMORY = RNG.standard_normal((2, 3, 5, 10), np.float32)
LIMIT = standards.value("module.limit")

GIVEN = {
    "plain": {},
    "grouped": {"qkv_features": 24, "out_features": 8, "num_kv_heads": 2, "in_kv_features": 10},
    "normed": {"normalize_qk": True, "use_bias": False, "param_dtype": jnp.bfloat16, "dtype": jnp.float32},
    "started": {
        "kernel_init": nnx.initializers.normal(0.3),
        "out_kernel_init": nnx.initializers.uniform(0.2),
        "bias_init": nnx.initializers.normal(0.1),
        "out_bias_init": nnx.initializers.ones_init(),
        "kernel_metadata": {"note": "k"},
        "out_bias_metadata": {"note": "o"},
        "precision": "highest",
    },
}


def pair(**options):
    """Flax's module and ours."""
    given = {"num_heads": 4, "in_features": 12, "decode": False, **options}
    return [
        of(**given, rngs=nnx.Rngs(params=1, dropout=2)) for of in (nnx.MultiHeadAttention, flax_nnx.MultiHeadAttention)
    ]


def close(one, other, limit=LIMIT):
    one, other = np.asarray(one), np.asarray(other)
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert np.max(np.abs(one - other)) <= limit * max(1.0, np.max(np.abs(one)))


@pytest.mark.parametrize("name", GIVEN)
def test_parameters_begin_as_flax_s_and_give_the_same(name):
    theirs, ours = pair(**GIVEN[name])
    kept = [nnx.to_flat_state(nnx.state(module, nnx.Param)) for module in (theirs, ours)]
    assert [path for path, _ in kept[0]] == [path for path, _ in kept[1]]
    for (_, one), (_, other) in zip(*kept, strict=True):
        assert np.asarray(one[...]).tobytes() == np.asarray(other[...]).tobytes()
        assert getattr(one, "note", None) == getattr(other, "note", None)
    memory = MEMORY if "in_kv_features" in GIVEN[name] else X
    mask = nnx.make_attention_mask(np.ones((2, 3, 7)), RNG.random(memory.shape[:3]) > 0.3)
    close(theirs(X, memory, mask=mask), ours(X, memory, mask=mask))


def test_a_row_without_keys_is_flax_s_mean():
    theirs, ours = pair()
    mask = np.ones((1, 1, 1, 7, 7), np.int32)
    mask[..., 2, :] = 0
    close(theirs(X, mask=mask), ours(inputs_q=X, mask=mask))


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_weights_are_dropped(shared):
    theirs, ours = pair(dropout_rate=0.4, broadcast_dropout=shared, deterministic=False)
    first = theirs(X), ours(X)
    close(*first)
    second = theirs(X), ours(X)
    close(*second)
    assert np.max(np.abs(np.asarray(first[1] - second[1]))) > LIMIT
    close(theirs(X, rngs=nnx.Rngs(5)), ours(X, rngs=nnx.Rngs(5)))
    close(theirs(X, deterministic=True), ours(X, deterministic=True))
    without = pair(dropout_rate=0.4, keep_rngs=False, deterministic=False)[1]
    with pytest.raises(ValueError, match="dropout_key must be given"):
        without(X)
    with pytest.raises(ValueError, match="MultiHeadAttention: deterministic must be given"):
        pair(dropout_rate=0.4)[1](X)


def test_weights_are_sown_before_dropout_where_flax_sows_them():
    theirs, ours = pair(dropout_rate=0.4, deterministic=False)
    sown = []
    for module in (theirs, ours):
        _, seen = nnx.capture(lambda m, x: m(x, sow_weights=True, is_causal=True), nnx.Intermediate)(module, X)
        sown.append(seen["attention_weights"].get_value()[0])
    close(*sown)


def test_decoding_token_by_token_and_in_chunks():
    theirs, ours = pair(num_kv_heads=2, decode=True)
    with pytest.raises(ValueError, match="call init_cache first"):
        ours(X[..., :1, :])
    for module in (theirs, ours):
        module.init_cache(X.shape)
    keep = RNG.random((7, 2, 3, 1, 1, 7)) > 0.2
    keep[..., 0] = True
    for at in range(2):
        token = X[..., at : at + 1, :]
        close(theirs(token, mask=keep[at]), ours(token, mask=keep[at]))
    assert int(ours.cache_index[...]) == 2
    close(theirs.cached_key[...], ours.cached_key[...])
    rest = ours(X[..., 2:, :])
    whole = ours(X, decode=False, is_causal=True)
    fresh = flax_nnx.MultiHeadAttention(4, 12, num_kv_heads=2, decode=True, rngs=nnx.Rngs(params=1))
    fresh.set_view(batch_size=(2, 3), max_length=7)
    close(fresh(X), whole)
    assert rest.shape == (2, 3, 5, 12)
    with pytest.raises(ValueError, match="8"):
        ours(X[..., :1, :])
    with pytest.raises(ValueError, match=r"leading axes \(2, 3\), but the input has \(2,\)"):
        ours(X[:, 0, :1])
    with pytest.raises(TypeError, match="batch_size and max_length"):
        ours.set_view(batch_size=3)


def test_modules_pass_through_the_transformations_of_nnx():
    _, ours = pair(normalize_qk=True)
    want = ours(X[0], is_causal=True)

    @nnx.jit
    def step(module, x):
        return nnx.value_and_grad(lambda m: (nnx.remat(lambda m, x: m(x, is_causal=True))(m, x) ** 2).sum())(module)

    loss, grads = step(ours, X[0])
    assert abs(float(loss) - float((want**2).sum())) <= LIMIT * float(loss)
    assert float(jnp.abs(grads.query_ln.scale[...]).max()) > 0

    @nnx.vmap(in_axes=(None, 0), out_axes=0)
    def each(module, x):
        return module(x[None], is_causal=True)[0]

    close(each(ours, X[0]), want)

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
        return flax_nnx.MultiHeadAttention(4, 12, rngs=rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def through(x, module):
        return module(x)

    layers = stack(nnx.Rngs(0))
    one_by_one = X[0]
    graph, state = nnx.split(layers)
    for n in range(3):
        one_by_one = nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], state))(one_by_one)
    close(through(X[0], layers), one_by_one)


def test_parameters_and_results_lie_where_they_are_told():
    mesh = jax.make_mesh((1, 1), ("data", "model"), (jax.sharding.AxisType.Explicit,) * 2)
    named = nnx.with_partitioning(nnx.initializers.normal(0.1), (None, "model", None))
    with jax.set_mesh(mesh):
        _, ours = pair(
            kernel_init=named,
            out_kernel_metadata={"out_sharding": ("model", None, None)},
            out_kernel_init=nnx.initializers.zeros,
            query_ln_scale_metadata={"out_sharding": (None,)},
            normalize_qk=True,
        )
        assert ours.query.kernel.out_sharding == (None, "model", None)
        assert ours.query.kernel[...].sharding.spec == jax.P(None, "model", None)
        assert ours.query_ln.scale.out_sharding == (None,)
        x = jax.device_put(X, jax.NamedSharding(mesh, jax.P("data")))
        places = {
            "qkv_sharding": jax.P("data", None, None, "model", None),
            "out_sharding": jax.P("data", None, None, "model"),
        }
        out = jax.jit(lambda x: ours(x, **places))(x)
        assert out.sharding.spec == jax.P("data", None, None, "model")
        with pytest.raises(ValueError, match="qkv_sharding may divide the first of the 2 leading axes only"):
            ours(x, qkv_sharding=jax.P(None, "data"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"attention_fn": nnx.dot_product_attention},
            "attention_fn must be left out: this module attends by the kernels",
        ),
        ({"qkv_dot_general": jax.lax.dot_general}, "qkv_dot_general must be left out"),
        ({"ln_promote_dtype": lambda *given: given}, "ln_promote_dtype must be left out"),
        ({"qkv_features": 10}, "qkv_features 10 is not divisible by num_heads 4"),
        ({"precision": "tall"}, "precision must be None"),
    ],
)
def test_what_cannot_be_taken_is_named(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        flax_nnx.MultiHeadAttention(4, 12, **options, rngs=nnx.Rngs(0))


def test_numbers_that_are_no_mask_are_named():
    with pytest.raises(ValueError, match="mask must hold bools, or 0"):
        pair()[1](X, mask=np.full((7, 7), -1e9))
    close(pair()[1](X, mask=masks.Causal()), pair()[1](X, is_causal=True))
