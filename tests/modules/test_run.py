"""Layers with parts: the modules of both twins agree, and say what is wrong. An oracle judges their values."""

from functools import partial

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.config import AttentionConfig
from maskattn.layer import (
    Clip,
    ContinuousTable,
    Cosine,
    Disentangled,
    DynamicNTK,
    ExtraKeys,
    Gate,
    GlobalTokens,
    Llama3,
    LongRope,
    Norm,
    Rotary,
    Slopes,
    T5Table,
    Temperature,
    WindowTable,
    Yarn,
)
from maskattn.modules.parameters import parameters
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.layers.oracle import Call, judge
from tests.frameworks import jax, maskattn_jax, maskattn_torch, nnx, optional, torch

pytestmark = pytest.mark.hurried

linen = optional("maskattn_jax.linen")

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 9, 60)).astype(np.float32)
GLOBALS = np.array([[True, False, False, False, True, False, False, False, False]] * 2)
GRID = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(9, 2)
MASK = masks.Causal() & masks.KeyPadding(np.array([9, 6]))


def _config(**parts):
    return AttentionConfig(60, 6, num_kv_heads=2, **parts)


#: name -> (configuration, mask, what else a call is given)
LAYERS = {
    "llama": (_config(rotary=Rotary(theta=100.0, scaling=Llama3(8.0, 1.0, 4.0, trained=16))), MASK, {}),
    "qwen3": (_config(rotary=Rotary(theta=100.0), qk_norm=Norm()), MASK, {}),
    "gemma": (_config(rotary=Rotary(theta=100.0, width=6, pairs="interleaved"), qk_norm=Norm(plus_one=True)), MASK, {}),
    "olmo2": (
        _config(
            rotary=Rotary(scaling=Yarn(4.0, trained=8)), qk_norm=Norm(over="all", scale="per_head"), clip=Clip(0.9)
        ),
        MASK,
        {},
    ),
    "layer norms": (_config(qk_norm=Norm("layer", scale="per_head", bias=True, after_rotary=True)), MASK, {}),
    "llama4": (
        _config(rotary=Rotary(), qk_norm=Norm(scale="none", after_rotary=True), temperature=Temperature(0.3, 2.0)),
        MASK,
        {"positions": np.array([0, 1, 2, 3, 4, 7, 8, 9, 12])},
    ),
    "phi3": (
        _config(rotary=Rotary(scaling=LongRope((1.0,) * 5, (2.0, 3.0, 4.0, 5.0, 6.0), trained=6, by=4.0)), sinks=True),
        MASK,
        {},
    ),
    "dynamic": (_config(rotary=Rotary(scaling=DynamicNTK(2.0, trained=6)), softcap=3.0), MASK, {}),
    "gated": (_config(gate=Gate(bias=True)), MASK, {}),
    "gated heads": (_config(gate=Gate("head", "silu")), MASK, {}),
    "swin v2": (_config(cosine=Cosine(), position_bias=ContinuousTable((3, 3), hidden=16)), None, {}),
    "swin": (_config(position_bias=WindowTable((3, 3))), None, {}),
    "beit": (_config(position_bias=WindowTable((2, 4), first=True)), None, {}),
    "t5": (_config(position_bias=T5Table(8, 6)), MASK, {}),
    "alibi": (_config(position_bias=Slopes()), MASK, {}),
    "extra": (
        _config(extra_keys=ExtraKeys(zero=True)),
        MASK,
        {"bias": RNG.standard_normal((6, 9, 9)).astype(np.float32)},
    ),
    "deberta": (
        _config(position_bias=Disentangled(5, buckets=4, max_distance=7)),
        MASK,
        {"relative": RNG.standard_normal((10, 60)).astype(np.float32)},
    ),
    "deberta apart": (
        _config(position_bias=Disentangled(5, shared=False, from_position=False)),
        MASK,
        {"relative": RNG.standard_normal((10, 60)).astype(np.float32)},
    ),
    "longformer": (
        _config(global_tokens=GlobalTokens()),
        (masks.SlidingWindow(2, 2) | masks.Global(GLOBALS)) & masks.KeyPadding(np.array([9, 6])),
        {"global_tokens": GLOBALS},
    ),
    "image": (_config(rotary=Rotary(theta=100.0, width=8, axes=(2, 2))), None, {"positions": GRID}),
}


def weights(config, seed=1):
    rng = np.random.default_rng(seed)
    shapes = {
        "query.kernel": (60, config.num_heads, config.head_dim),
        "key.kernel": (60, config.num_kv_heads, config.head_dim),
        "value.kernel": (60, config.num_kv_heads, config.v_head_dim),
        "out.kernel": (config.num_heads, config.v_head_dim, 60),
    }
    shapes |= {f"{n}.bias": shapes[f"{n}.kernel"][1:] for n in ("query", "key", "value")} | {"out.bias": (60,)}
    shapes |= {name: parameter.shape for name, parameter in parameters(config).items()}
    return {
        n: (rng.standard_normal(s) * (0.15 if "kernel" in n else 0.5)).astype(np.float32) for n, s in shapes.items()
    }


def run(kind, config, mask, given, kernel="auto", **options):
    """Outputs of one of the three modules, by NumPy."""
    if kind == "torch":
        module = maskattn_torch.MultiHeadAttention(config)
        maskattn_torch.params.load(module, weights(config))
        given = {name: torch.tensor(x) for name, x in given.items()}
        found = module(torch.tensor(X), mask=mask, kernel=kernel, **given, **options)
        return [x.detach().numpy() for x in found] if isinstance(found, tuple) else [found.detach().numpy()]
    if kind == "nnx":
        module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
        maskattn_jax.params.load(module, weights(config))
        call = module
    else:
        module = linen.MultiHeadAttention(config)
        call = partial(module.apply, maskattn_jax.params.load(module, weights(config)))
    once = jax.jit(lambda x, given: call(x, mask=mask, kernel=kernel, **given, **options), compiler_options=HURRY)
    found = once(X, given)
    return [np.asarray(x) for x in (found if isinstance(found, tuple) else (found,))]


def called(mask, given, x):
    """What a module is called with, for the oracle of layers."""
    allowed = None if mask is None else np.asarray(mask.dense(9, 9, 2))
    return Call(x, allowed=allowed, **given)


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("name", LAYERS)
def test_the_three_modules_agree_and_are_right(name):
    config, mask, given = LAYERS[name]
    options = {"return_weights": True, "return_lse": True}
    one = run("torch", config, mask, given, **options)
    right = judge(config, weights(config), called(mask, given, X), "float32")
    assert np.all(np.abs(one[0] - right.output) <= right.limit)
    for kind in ("nnx", "linen"):
        found = run(kind, config, mask, given, **options)
        assert np.all(np.abs(found[0] - right.output) <= right.limit)
        for x, y in zip(one, found, strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype
            assert np.max(np.abs(x - y)) <= standards.value("same.tiles") * np.max(np.abs(x))
    output, probabilities, lse = one
    assert output.shape == (2, 9, 60) and lse.shape == (2, 9, 6)
    assert probabilities.shape == (2, 6, 9, 9 + (2 if name == "extra" else 0))
    if not config.sinks:
        assert np.max(np.abs(probabilities.sum(-1) - 1)) <= standards.value("same.compiled")


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("name", LAYERS)
def test_every_part_changes_the_output(name):
    config, mask, given = LAYERS[name]
    plain = AttentionConfig(60, 6, num_kv_heads=2)
    without = run("torch", plain, mask, {k: v for k, v in given.items() if k == "bias"})[0]
    assert np.max(np.abs(run("torch", config, mask, given)[0] - without)) > standards.value("module.limit")


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("name", ["qwen3", "olmo2", "swin v2", "gated heads", "deberta apart", "longformer"])
def test_parameters_go_out_as_they_came_in(name):
    config, mask, given = LAYERS[name]
    tensors = weights(config)
    one = maskattn_torch.MultiHeadAttention(config)
    maskattn_torch.params.load(one, tensors)
    other = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
    maskattn_jax.params.load(other, tensors)
    module = linen.MultiHeadAttention(config)
    variables = maskattn_jax.params.load(module, tensors)
    made = module.init(jax.random.key(0), X, mask=mask, **given)
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, variables)
    for found in (maskattn_torch.params.dump(one), maskattn_jax.params.dump(other)):
        assert found.keys() == tensors.keys()
        assert all(found[n].tobytes() == x.tobytes() for n, x in tensors.items())
    del tensors[next(reversed(parameters(config)))]
    for load in (
        lambda: maskattn_torch.params.load(one, tensors),
        lambda: maskattn_jax.params.load(other, tensors),
        lambda: maskattn_jax.params.load(module, tensors),
    ):
        with pytest.raises(ValueError, match="that nothing would fill|missing"):
            load()


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("kind", ["torch", "nnx", "linen"])
def test_leading_axes_are_one_batch(kind):
    config = _config(rotary=Rotary())
    keep = RNG.random((3, 1, 1, 5, 5)) > 0.3
    x = RNG.standard_normal((2, 3, 5, 60)).astype(np.float32)

    def call(inputs, mask):
        if kind == "torch":
            module = maskattn_torch.MultiHeadAttention(config)
            maskattn_torch.params.load(module, weights(config))
            return module(torch.tensor(inputs), mask=mask).detach().numpy()
        if kind == "nnx":
            module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
            maskattn_jax.params.load(module, weights(config))
            return np.asarray(jax.jit(module, compiler_options=HURRY)(inputs, mask=mask))
        module = linen.MultiHeadAttention(config)
        apply = partial(module.apply, maskattn_jax.params.load(module, weights(config)))
        return np.asarray(jax.jit(apply, compiler_options=HURRY)(inputs, mask=mask))

    flat = call(x.reshape(6, 5, 60), np.broadcast_to(keep[:, 0], (2, 3, 1, 5, 5)).reshape(6, 1, 5, 5))
    assert np.array_equal(call(x, np.moveaxis(keep, 1, 0)).reshape(6, 5, 60), flat)
    alone = call(x[1, 2], keep[2, 0])
    assert alone.shape == (5, 60)
    assert np.max(np.abs(alone - flat[5])) <= standards.value("same.tiles") * np.max(np.abs(flat))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("parts", "given", "words"),
    [
        ({}, {"positions": np.arange(9)}, "positions are given, but the layer has neither rotary nor temperature"),
        ({"rotary": Rotary()}, {"positions": np.arange(8)}, r"positions must be \[9\] or \[2, 9\], got shape \[8\]"),
        ({"rotary": Rotary()}, {"positions": np.arange(9.0)}, "positions must be integers, got float64"),
        ({}, {"relative": np.zeros((4, 60), np.float32)}, "relative is given, but no part reads it"),
        ({"position_bias": Disentangled(2)}, {}, "relative must be given, the layer's position_bias reads it"),
        ({"global_tokens": GlobalTokens()}, {}, "global_tokens must be given, the layer's global_tokens reads it"),
        (
            {"global_tokens": GlobalTokens()},
            {"global_tokens": np.zeros((2, 9))},
            "global_tokens must be bool, got float64",
        ),
        (
            {"position_bias": Slopes()},
            {"bias": np.zeros((9, 9), np.float32)},
            "bias must be None where the layer has a",
        ),
    ],
)
def test_what_the_parts_cannot_take_is_named(parts, given, words):
    with pytest.raises((TypeError, ValueError), match=words):
        run("torch", _config(**parts), None, given)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"rotary": Rotary(width=12)}, "rotary: width must be even and at most head_dim 10, got 12"),
        ({"cosine": Cosine(), "qk_norm": Norm()}, "cosine and qk_norm are two norms"),
        ({"position_bias": Slopes((1.0,))}, "slopes must be one per head, 6, got 1"),
        ({"gate": Gate(), "project": False}, "gate and global_tokens are projections"),
        ({"qk_norm": "rms"}, "qk_norm .* must be a Norm, got 'rms'"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts, words):
    with pytest.raises((TypeError, ValueError), match=words):
        _config(**parts)
