"""Modules with a cache: step by step they give what they give for the whole sequence, in all three kinds."""

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.layer import Disentangled, GlobalTokens, Rotary, WindowTable
from maskattn.parity.against.hurry import HURRY
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, nnx, optional, torch
from tests.modules.test_run import LAYERS, _config, weights

pytestmark = pytest.mark.hurried

linen = optional("maskattn_jax.linen")
caches = {"torch": optional("maskattn_torch.cache"), "jax": optional("maskattn_jax.cache")}

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 9, 60)).astype(np.float32)
MASK = masks.Causal() & masks.SlidingWindow(4, None)
#: how many tokens each step adds
STEPS = (4, 1, 4)
KINDS = [pytest.param("torch", marks=pytest.mark.torch), pytest.param("nnx", marks=pytest.mark.jax)]


def made(kind, config):
    """call(x, **options) -> output, or (output, cache), of one of the three modules; and the class of its caches."""
    if kind == "torch":
        module = maskattn_torch.MultiHeadAttention(config)
        maskattn_torch.params.load(module, weights(config))

        def call(x, **options):
            with torch.no_grad():
                return module(torch.as_tensor(x), **options)

        return call, caches["torch"].Cache
    if kind == "nnx":
        twin = _twin(config)
        return jax.jit(lambda x, **options: twin(x, **options), compiler_options=HURRY), caches["jax"].Cache
    face = linen.MultiHeadAttention(config)
    variables = maskattn_jax.params.load(face, weights(config))
    return jax.jit(lambda x, **options: face.apply(variables, x, **options), compiler_options=HURRY), caches[
        "jax"
    ].Cache


def _twin(config):
    """The module of NNX."""
    module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
    maskattn_jax.params.load(module, weights(config))
    return module


def stepped(call, cache, x, **options):
    """The outputs of all steps, one after the other; and the cache."""
    found, start = [], 0
    for count in STEPS:
        output, cache = call(x[:, start : start + count], cache=cache, **options)
        found.append(np.asarray(output))
        start += count
    return np.concatenate(found, 1), cache


def near(one, other):
    return np.max(np.abs(one - other)) <= standards.value("same.tiles") * np.max(np.abs(other))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(
            pytest.param("torch", n, marks=pytest.mark.torch)
            for n in ("gemma", "olmo2", "qwen3", "t5", "alibi", "gated")
        ),
        *(pytest.param("nnx", n, marks=pytest.mark.jax) for n in ("qwen3", "t5")),
        pytest.param("linen", "gated", marks=pytest.mark.jax),
    ],
)
def test_step_by_step_is_the_whole(kind, name):
    config = LAYERS[name][0]
    call, cache = made(kind, config)
    whole = np.asarray(call(X, mask=MASK))
    steps, filled = stepped(call, cache.for_config(config, 2, 11), X, mask=MASK)
    assert near(steps, whole)
    assert np.asarray(filled.lengths).tolist() == [9, 9]
    rolled, _ = stepped(call, cache.for_config(config, 2, 5, rolling=True), X, mask=MASK)
    assert near(rolled, whole)
    if kind == "torch":  # without the mask later tokens of a step are seen
        assert not near(stepped(call, cache.for_config(config, 2, 11), X)[0], whole)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_lengths_each_go_on_from_their_own_end(kind):
    config = LAYERS["qwen3"][0]
    call, cache = made(kind, config)
    valid = np.array([[True] * 4, [False, False, True, True]])
    mask = masks.Causal()
    first, held = call(X[:, :4], cache=cache.for_config(config, 2, 8), mask=mask, valid=valid)
    after, held = call(X[:, 4:6], cache=held, mask=mask)
    alone = np.asarray(call(X[1:, 2:6], mask=mask))[0]
    assert near(np.asarray(first)[1, 2:], alone[:2]) and near(np.asarray(after)[1], alone[2:])
    assert near(np.asarray(after)[0], np.asarray(call(X[:1, :6], mask=mask))[0, 4:])
    assert np.asarray(held.lengths).tolist() == [6, 4]


@pytest.mark.jax
def test_a_step_is_compiled_once_in_jax():
    config = LAYERS["qwen3"][0]
    call, cache = made("nnx", config)
    twin, traced = _twin(config), []

    @jax.jit
    def step(x, cache):
        traced.append(x.shape)
        return twin(x, cache=cache, mask=MASK)

    held, found = cache.for_config(config, 2, 11), []
    for i in range(9):
        output, held = step(jnp.asarray(X[:, i : i + 1]), held)
        found.append(np.asarray(output))
    assert len(traced) == 1
    assert near(np.concatenate(found, 1), np.asarray(call(X, mask=MASK)))


@pytest.mark.torch
def test_a_step_is_compiled_once_in_pytorch():
    config = LAYERS["qwen3"][0]
    module = maskattn_torch.MultiHeadAttention(config)
    maskattn_torch.params.load(module, weights(config))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(module, backend=backend, fullgraph=True)
    held, found = caches["torch"].Cache.for_config(config, 2, 11), []
    with torch.no_grad():
        for i in range(9):
            output, held = step(torch.tensor(X[:, i : i + 1]), cache=held, mask=MASK)
            found.append(output.numpy())
        whole = module(torch.tensor(X), mask=MASK).numpy()
    assert len(graphs) == 1
    assert near(np.concatenate(found, 1), whole)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("parts", "given", "words"),
    [
        ({}, {"cache": 3}, "cache must be a Cache, got 3"),
        ({"rotary": Rotary()}, {"batch": 3}, "cache must have a row for each of the batch, 2, got 3"),
        ({}, {"mask": np.ones((4, 4), bool)}, "mask must be a Mask, of whole sequences, where there is a cache"),
        ({}, {"key": X[:, :3]}, "query and key must be of one length where there is a cache, got 4 and 3"),
        ({}, {"cache": None, "valid": np.ones((2, 4), bool)}, "valid is given, but no cache, which reads it"),
        ({"position_bias": WindowTable((2, 2))}, {}, "cache must be None: the layer's position_bias read whole"),
        ({"position_bias": Disentangled(2)}, {"relative": X[0, :4]}, "cache must be None: the layer's position_bias"),
        ({"global_tokens": GlobalTokens()}, {"global_tokens": X[..., 0] > 9}, "the layer's global_tokens read whole"),
        ({}, {"size": 3}, "row 0 would have 4 tokens, more than 3 slots|3 slots"),
    ],
)
def test_what_a_step_cannot_take_is_named_and_the_cache_unchanged(parts, given, words):
    config = _config(**parts)
    call, cache = made("torch", config)
    empty = cache.for_config(config, given.pop("batch", 2), given.pop("size", 8))
    given = {name: torch.tensor(x) if isinstance(x, np.ndarray) and name != "mask" else x for name, x in given.items()}
    with pytest.raises((TypeError, ValueError), match=words):
        call(X[:, :4], **{"cache": empty, **given})
    assert not empty.lengths.any() and not empty.key.any()


@pytest.mark.jax
def test_training_through_steps_in_a_scan():
    """Ragged rows in a rolling cache, one token at a time in a scan: outputs and gradients are those of the whole."""
    config = LAYERS["qwen3"][0]
    graph, state = nnx.split(_twin(config))
    real = np.arange(9) < np.array([[9], [6]])
    empty = caches["jax"].Cache.for_config(config, 2, 4, rolling=True)
    window = masks.Causal() & masks.SlidingWindow(3)

    def whole(state, x):
        return nnx.merge(graph, state)(x, mask=window)

    def stepped(state, x):
        def step(cache, given):
            output, cache = nnx.merge(graph, state)(given[0], cache=cache, mask=window, valid=given[1])
            return cache, output

        each = jnp.swapaxes(x, 0, 1)[:, :, None], jnp.asarray(real.T[:, :, None])
        return jnp.swapaxes(jax.lax.scan(step, empty, each)[1][:, :, 0], 0, 1)

    def both(call):
        def loss(state, x):
            output = jnp.where(real[..., None], call(state, x), 0)
            return (output**2).sum(), output

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=HURRY)(state, X)

    (found, wanted) = both(stepped), both(whole)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        limit = standards.value("same.gradient") * np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=limit)
