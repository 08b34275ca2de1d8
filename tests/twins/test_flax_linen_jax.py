"""`flax.linen.MultiHeadDotProductAttention` and ours with the same attributes: parameters, outputs, dropout, caches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskattn import standards
from maskattn_jax import flax_linen

pytestmark = pytest.mark.hurried

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 7, 12), np.float32)
MEMORY = RNG.standard_normal((2, 3, 5, 10), np.float32)
LIMIT = standards.value("module.limit")
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

GIVEN = {
    "plain": {},
    "sized": {"qkv_features": 24, "out_features": 8, "normalize_qk": True, "use_bias": False},
    "started": {
        "kernel_init": nn.with_logical_partitioning(nn.initializers.normal(0.3), ("embed", "heads", "head")),
        "out_kernel_init": nn.initializers.uniform(0.2),
        "bias_init": nn.initializers.normal(0.1),
        "out_bias_init": nn.initializers.ones_init(),
        "param_dtype": jnp.bfloat16,
        "precision": jax.lax.Precision.HIGHEST,
        "force_fp32_for_softmax": True,
    },
}


def pair(**options):
    """Flax's module and ours."""
    given = {"num_heads": 4, **options}
    return nn.MultiHeadDotProductAttention(**given), flax_linen.MultiHeadDotProductAttention(**given)


def close(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert np.max(np.abs(one - other)) <= LIMIT * max(1.0, np.max(np.abs(one)))


@pytest.mark.parametrize("name", GIVEN)
def test_parameters_begin_as_flax_s_and_give_the_same(name):
    theirs, ours = pair(**GIVEN[name])
    inputs = (X, MEMORY) if name == "sized" else (X,)
    held = [module.init(KEYS["params"], *inputs) for module in (theirs, ours)]
    assert nn.get_partition_spec(held[0]) == nn.get_partition_spec(held[1])
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), *held)
    assert all(jax.tree.leaves(same))
    mask = nn.make_attention_mask(np.ones((2, 3, 7)), RNG.random(inputs[-1].shape[:3]) > 0.3)
    close(theirs.apply(held[0], *inputs, mask=mask), ours.apply(held[0], *inputs, mask=mask))


def test_inside_a_model_submodules_have_flax_s_names():
    class Model(nn.Module):
        of: type[nn.Module]

        @nn.compact
        def __call__(self, x):
            return nn.remat(self.of)(num_heads=4)(x) + self.of(num_heads=3)(x)

    models = Model(nn.MultiHeadAttention), Model(flax_linen.MultiHeadAttention)
    one, other = (model.init(KEYS["params"], X[0]) for model in models)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    close(models[0].apply(one, X[0]), jax.jit(models[1].apply)(one, X[0]))


@pytest.mark.parametrize("shared", [True, False])
def test_the_same_weights_are_dropped(shared):
    theirs, ours = pair(dropout_rate=0.4, broadcast_dropout=shared)
    variables = theirs.init(KEYS["params"], X, deterministic=True)
    for given in ({"deterministic": False}, {"deterministic": False, "dropout_rng": jax.random.key(9)}):
        outs = [module.apply(variables, X, rngs={"dropout": KEYS["dropout"]}, **given) for module in (theirs, ours)]
        close(*outs)
    with pytest.raises(ValueError, match="deterministic must be given"):
        ours.apply(variables, X)


def test_weights_are_sown_before_dropout_where_flax_sows_them():
    theirs, ours = pair(dropout_rate=0.4, deterministic=False)
    variables = theirs.init(KEYS, X)
    found = [
        module.apply(variables, X, sow_weights=True, rngs=KEYS, mutable=["intermediates"])[1]["intermediates"]
        for module in (theirs, ours)
    ]
    close(*(each["attention_weights"][0] for each in found))


def test_decoding_token_by_token_and_in_chunks():
    theirs, ours = pair(decode=True)
    start = [module.init(KEYS["params"], X) for module in (theirs, ours)]
    assert jax.tree.map(jnp.shape, start[0]) == jax.tree.map(jnp.shape, start[1])
    held = list(start)
    run = [jax.jit(lambda v, x, m=module: m.apply(v, x, mutable=["cache"])) for module in (theirs, ours)]
    for at in range(3):
        token = X[..., at : at + 1, :]
        outs = []
        for n in range(2):
            out, more = run[n](held[n], token)
            held[n] = {**held[n], **more}
            outs.append(out)
        close(*outs)
    close(held[0]["cache"]["cached_value"], held[1]["cache"]["cached_value"])
    rest, more = ours.apply(held[1], X[..., 3:, :], mutable=["cache"])
    whole = pair()[1].apply({"params": start[0]["params"]}, X, mask=nn.make_causal_mask(np.ones((2, 3, 7))))
    close(rest, whole[..., 3:, :])
    with pytest.raises(ValueError, match="8"):
        ours.apply({**held[1], **more}, X[..., :1, :], mutable=["cache"])


def test_layers_in_a_scan_and_a_vmap():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return flax_linen.MultiHeadDotProductAttention(num_heads=4, normalize_qk=True)(x), None

    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    variables = scanned.init(KEYS["params"], X[0], None)
    one = jax.jit(lambda variables, x: Layer().apply(variables, x, None)[0])
    one_by_one = X[0]
    for n in range(3):
        one_by_one = one(jax.tree.map(lambda leaf, n=n: leaf[n], variables), one_by_one)
    close(scanned.apply(variables, X[0], None)[0], one_by_one)
    many = nn.vmap(Layer, in_axes=(0, None), variable_axes={"params": None}, split_rngs={"params": False})()
    single = {"params": jax.tree.map(lambda leaf: leaf[0], variables)["params"]}
    close(many.apply(single, X, None)[0][1], one(single, X[1]))


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"attention_fn": nn.dot_product_attention}, {}, "attention_fn must be left out: this module attends"),
        ({"qk_attn_weights_einsum_cls": object}, {}, "qk_attn_weights_einsum_cls must be left out"),
        ({"qkv_features": 10}, {}, "qkv_features 10 is not divisible by num_heads 4"),
        ({}, {"inputs_kv": X, "inputs_k": X}, "inputs_kv is both inputs_k and inputs_v"),
        ({}, {"mask": np.full((7, 7), -1e9)}, "mask must hold bools, or 0"),
    ],
)
def test_what_cannot_be_taken_is_named(options, given, words):
    with pytest.raises((TypeError, ValueError), match=words):
        pair(**options)[1].init(KEYS["params"], X, **given)
