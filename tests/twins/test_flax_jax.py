"""attention_fn in Flax's own modules, Linen's and NNX's, against the attention that they have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import maskattn_jax
from maskattn import masks, standards
from maskattn_jax import attention_fn
from tests.twins.peers import limits, within

pytestmark = pytest.mark.hurried

B, L, H, D, E = 2, 6, 4, 4, 16
X = jax.random.normal(jax.random.key(0), (B, L, E))
KEEP = jnp.asarray(np.tril(np.random.default_rng(0).random((B, 1, L, L)) > 0.3)).at[..., 0].set(True)
FLAX = {"linen": nn.dot_product_attention, "nnx": nnx.dot_product_attention}


def operands(lead=(B,), kv_heads=H):
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(*lead, L, n, D) for n in (H, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def compared(theirs, arrays, mask, bias=None, **options):
    """Asserts that the outputs, and the gradients of all arrays, are within the sum of both bounds."""
    given = arrays if bias is None else [*arrays, bias]

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, *given):
        def attend(query, key, value, bias=None):
            return function(query, key, value, bias=bias, mask=mask, **options)

        found, pull = jax.vjp(attend, *given)
        return [found, *pull(jnp.cos(jnp.arange(found.size, dtype=found.dtype)).reshape(found.shape))]

    wide = [np.asarray(x, np.float64).reshape(-1, *x.shape[-3:]) for x in arrays]
    wide[1:] = [np.repeat(x, wide[0].shape[2] // x.shape[2], 2) for x in wide[1:]]
    allowed = np.asarray(mask, bool).reshape(-1, *mask.shape[-3:])
    allowed = allowed & np.tri(L, dtype=bool) if options.get("is_causal") else allowed
    cotangent = np.cos(np.arange(wide[0].size)).reshape(wide[0].shape)
    bound = limits(*wide, allowed, cotangent, bias=None if bias is None else np.asarray(bias, np.float64)[None])
    groups = wide[0].shape[2] // arrays[1].shape[-2]  # a gradient of a shared head is a sum
    for i, (found, expected) in enumerate(zip(run(attention_fn, *given), run(theirs, *given), strict=True)):
        within(found, expected, bound[i] * (groups if i in (2, 3) else 1))


def test_output_and_gradients_are_those_of_linen():
    bias = jax.random.normal(jax.random.key(3), (H, L, L))
    compared(FLAX["linen"], operands(), KEEP, bias)


def test_output_and_gradients_are_those_of_nnx_with_several_axes_of_the_batch():
    keep = jnp.stack([KEEP, KEEP.at[..., 1].set(True), KEEP.at[..., 2].set(True)], 1)
    compared(FLAX["nnx"], operands((B, 3)), keep)


def test_grouped_heads_and_causal_are_those_of_nnx():
    keep = (jax.random.uniform(jax.random.key(6), (B, H, L, L)) > 0.3).at[..., 0].set(True)
    compared(FLAX["nnx"], operands(kv_heads=2), keep, is_causal=True)


def test_masks_and_biases_broadcast_over_several_axes_of_the_batch_and_over_none():
    by_formula = jax.jit(functools.partial(attention_fn, kernel="reference"))
    for lead, shape in (((2, 3), (3, 1, L, L)), ((2, 3), (2, 1, H, 1, L)), ((), (H, L, L))):
        mask = (jax.random.uniform(jax.random.key(4), shape) > 0.3).at[..., 0].set(True)
        given = {"mask": mask, "bias": jax.random.normal(jax.random.key(3), shape)}
        expected = jax.jit(FLAX["linen"])(*operands(lead), **given)
        within(by_formula(*operands(lead), **given), expected, standards.value("same.tiles"))


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_the_dtype_of_the_computation_is_the_one_that_is_asked_for(dtype):
    wide = operands()
    found = attention_fn(*wide, mask=KEEP, dtype=dtype)
    expected = nn.dot_product_attention(*wide, mask=KEEP, dtype=dtype, force_fp32_for_softmax=True)
    flat = [np.asarray(x, np.float64) for x in wide]
    bound = limits(*flat, np.asarray(KEEP), np.zeros(flat[0].shape), dtype=jnp.dtype(dtype).name)[0]
    assert found.dtype == dtype
    within(found.astype(jnp.float32), jnp.asarray(expected, jnp.float32), bound)


TYPED, LEGACY = jax.random.key(5), jax.random.PRNGKey(5)


@pytest.mark.parametrize(
    ("lead", "key", "broadcast"),
    [((B,), TYPED, True), ((), LEGACY, True), ((2, 3), LEGACY, False)],
    ids=["shared", "no batch", "each its own"],
)
def test_dropout_drops_the_weights_that_flax_drops(lead, key, broadcast):
    query, keys, _ = operands(lead)
    values = jnp.broadcast_to(jnp.eye(L)[:, None], (*lead, L, H, L))  # the output is then the weights
    options = {"dropout_rng": key, "dropout_rate": 0.4, "broadcast_dropout": broadcast}
    found = attention_fn(query, keys, values, **options)
    expected = nn.dot_product_attention(query, keys, values, **options)
    np.testing.assert_array_equal(np.asarray(found == 0), np.asarray(expected == 0))
    assert 0 < int((found == 0).sum()) < found.size
    same = attention_fn(query, keys, values, **options, deterministic=True)
    assert jnp.all(same != 0)


def linen_pair(**options):
    made = nn.MultiHeadDotProductAttention(num_heads=H, **options)
    return made.clone(attention_fn=attention_fn), made


@pytest.mark.parametrize("mask", [KEEP, KEEP.astype(float), masks.Dense(np.asarray(KEEP))], ids=["bool", "01", "Mask"])
def test_linens_module_takes_it_with_every_kind_of_mask(mask):
    ours, theirs = linen_pair(dropout_rate=0.3, normalize_qk=True)
    variables = theirs.init(jax.random.key(2), X, deterministic=True)
    options = {"deterministic": False, "dropout_rng": jax.random.key(3), "sow_weights": True}

    @jax.jit
    def found(variables, mask):
        return ours.apply(variables, X, mask=mask, **options, mutable=["intermediates"])

    out, sown = found(variables, mask)
    right, right_sown = theirs.apply(variables, X, mask=KEEP, **options, mutable=["intermediates"])
    limit = standards.value("same.tiles")
    within(out, right, limit)
    (weights,), (expected,) = (s["intermediates"]["attention_weights"] for s in (sown, right_sown))
    within(weights, expected, limit)


def test_nnxs_module_takes_it_with_grouped_heads_dropout_and_sown_weights():
    def made(**options):
        return nnx.MultiHeadAttention(
            H, E, num_kv_heads=2, dropout_rate=0.3, decode=False, deterministic=False, rngs=nnx.Rngs(0), **options
        )

    ours, theirs = made(attention_fn=attention_fn), made()
    options = {"mask": jnp.broadcast_to(KEEP, (B, H, L, L)), "is_causal": True, "sow_weights": True}
    limit = standards.value("same.tiles")

    @nnx.jit
    def run(module, rngs):
        found, sown = nnx.capture(lambda m: m(X, rngs=rngs, **options), nnx.Intermediate)(module)
        return found, jax.tree.leaves(sown)

    found, sown = run(ours, nnx.Rngs(4))
    expected, right = run(theirs, nnx.Rngs(4))
    within(found, expected, limit)
    assert len(sown) == len(right) == 1
    within(sown[0], right[0], limit)


@pytest.mark.parametrize("flax", FLAX)
def test_decoding_step_by_step_is_that_of_flax(flax):
    mask = masks.SlidingWindow(2, 0)
    if flax == "linen":
        ours, theirs = (made.clone(decode=True) for made in linen_pair())
        variables = theirs.init(jax.random.key(2), X)

        def run(module, masked):
            cache, found = variables["cache"], []
            for i in range(L):
                given = {"params": variables["params"], "cache": cache}
                out, changed = module.apply(given, X[:, i : i + 1], mask=masked(i), mutable=["cache"])
                cache = changed["cache"]
                found.append(out)
            return jnp.concatenate(found, 1)
    else:

        def run(function, masked):
            module = nnx.MultiHeadAttention(H, E, decode=True, attention_fn=function, rngs=nnx.Rngs(0))
            module.init_cache(X.shape)
            return jnp.concatenate([module(X[:, i : i + 1], mask=masked(i)) for i in range(L)], 1)

        ours, theirs = attention_fn, FLAX["nnx"]
    limit = standards.value("same.tiles")
    within(run(ours, lambda i: None), run(theirs, lambda i: None), limit)

    def at(i):
        return maskattn_jax.lower.to_dense(mask.at(i), 1, L)

    within(run(ours, at), run(theirs, at), limit)


def test_a_mask_that_flax_itself_would_combine_says_what_to_give_instead():
    ours, _ = linen_pair(decode=True)
    variables = ours.init(jax.random.key(2), X)
    with pytest.raises(AttributeError, match=r"Causal is a mask.*lower.to_dense\(mask.at\(step\), 1, max_length\)"):
        ours.apply(variables, X[:, :1], mask=masks.Causal(), mutable=["cache"])
    assert not hasattr(masks.Causal(), "ndim")


def test_known_difference_rows_that_may_attend_to_nothing():
    arrays = operands()
    keep = KEEP.at[0, 0, 2].set(False)
    theirs = nn.dot_product_attention(*arrays, mask=keep)
    assert jnp.all(attention_fn(*arrays, mask=keep)[0, 2] == 0) and jnp.all(theirs[0, 2] != 0)
    mean = functools.partial(attention_fn, empty_rows="mean")
    within(mean(*arrays, mask=keep), theirs, standards.value("same.tiles"))
    made = nn.MultiHeadDotProductAttention(num_heads=H, attention_fn=mean)
    with_mean, variables = made.init_with_output(jax.random.key(2), X, mask=keep)
    expected = made.clone(attention_fn=nn.dot_product_attention).apply(variables, X, mask=keep)
    within(with_mean, expected, standards.value("same.tiles"))


def test_known_difference_nan_in_what_is_masked():
    query, keys, values = operands()
    arrays = (query, keys.at[:, 3].set(jnp.nan), values.at[:, 3].set(jnp.nan))
    keep = KEEP.at[..., 3].set(False)
    assert jnp.all(jnp.isnan(nn.dot_product_attention(*arrays, mask=keep)))
    assert jnp.all(jnp.isfinite(attention_fn(*arrays, mask=keep)))


def test_known_difference_causal_is_aligned_at_the_start_in_decoding_too():
    query, keys, values = operands()
    for function in (attention_fn, FLAX["nnx"]):  # the one query is the first, whatever the cache holds
        found = function(query[:, :1], keys, values, is_causal=True)
        within(found[:, 0], values[:, 0], standards.value("same.tiles"))


REFUSED = {
    "module's einsum": ({"qk_attn_weights_einsum": jnp.einsum}, "qk_attn_weights_einsum must be None"),
    "other einsum": ({"attn_weights_value_einsum": jnp.einsum}, "attn_weights_value_einsum must be None"),
    "dot_general": ({"einsum_dot_general": jax.lax.dot_general}, "einsum_dot_general must be None"),
    "no key": ({"dropout_rate": 0.1}, "dropout_rng must be given where dropout_rate is 0.1"),
    "additive": (
        {"mask": jnp.full((L, L), -jnp.inf)},
        "mask must hold bools, or 0 .* and 1 .*, got -inf",
    ),
    "mask of a list": ({"mask": [[True]]}, "mask must be a Mask, or an array"),
    "wide mask": ({"mask": jnp.ones((3, 1, 1, L, L))}, "mask must broadcast to"),
    "shape": ({"mask": jnp.ones((3, 1, L, L), bool)}, "mask must broadcast to"),
    "precision": ({"precision": "best"}, 'precision must be None, a jax.lax.Precision, "default"'),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_by_name(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        attention_fn(*operands(), **options)


def test_an_unknown_keyword_is_an_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'window'"):
        attention_fn(*operands(), window=3)


def test_inputs_that_do_not_agree_are_refused():
    query, keys, values = operands()
    with pytest.raises(ValueError, match="query must be .* got shape"):
        attention_fn(query[0, 0], keys, values)
    with pytest.raises(ValueError, match="must agree in the axes before the last three"):
        attention_fn(query, keys[0], values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, "default"), ("tensorfloat32", "high"), (jax.lax.Precision.HIGHEST, "highest"), (("high",) * 2, "high")],
)
def test_precisions_of_jax_are_ours(given, expected, monkeypatch):
    seen = {}
    monkeypatch.setattr("maskattn_jax.flax.attention", lambda q, *_, **options: seen.update(options) or q)
    attention_fn(*operands(), precision=given)
    assert seen["precision"] == expected
