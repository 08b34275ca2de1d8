"""Layers with parts by kernel="exact": the same bits in both twins, forwards and backwards."""

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
    Gate,
    Norm,
    Rotary,
    Temperature,
)
from maskattn.modules.parameters import parameters
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, nnx, optional, torch
from tests.twin import same

linen = optional("maskattn_jax.linen")

RNG = np.random.default_rng(8)
X = RNG.standard_normal((2, 5, 12)).astype(np.float32)
MASK = masks.Causal() & masks.KeyPadding(np.array([5, 3]))


def _config(**parts):
    return AttentionConfig(12, 2, num_kv_heads=1, head_dim=6, **parts)


LAYERS = {
    "rotary, norms, softcap, sinks": (
        _config(
            rotary=Rotary(theta=100.0, width=4, scaling=DynamicNTK(2.0, trained=3)),
            qk_norm=Norm(plus_one=True),
            softcap=3.0,
            sinks=True,
        ),
        MASK,
        {},
    ),
    "the others": (
        _config(
            rotary=Rotary(theta=100.0, pairs="interleaved"),
            qk_norm=Norm("layer", over="all", scale="per_head", bias=True, after_rotary=True),
            clip=Clip(0.9),
            temperature=Temperature(0.3, 2.0),
            gate=Gate(bias=True),
        ),
        MASK,
        {"positions": np.array([0, 1, 3, 7, 900])},
    ),
    "swin v2": (
        AttentionConfig(12, 2, cosine=Cosine(most=3.0), position_bias=ContinuousTable((1, 5), hidden=4)),
        None,
        {},
    ),
    "deberta": (
        AttentionConfig(12, 2, position_bias=Disentangled(3)),
        MASK,
        {"relative": RNG.standard_normal((6, 12)).astype(np.float32)},
    ),
}


def _weights(config):
    shapes = {
        "query.kernel": (12, config.num_heads, config.head_dim),
        "key.kernel": (12, config.num_kv_heads, config.head_dim),
        "value.kernel": (12, config.num_kv_heads, config.v_head_dim),
        "out.kernel": (config.num_heads, config.v_head_dim, 12),
    }
    shapes |= {f"{n}.bias": shapes[f"{n}.kernel"][1:] for n in ("query", "key", "value")} | {"out.bias": (12,)}
    shapes |= {name: parameter.shape for name, parameter in parameters(config).items()}
    rng = np.random.default_rng(1)
    return {name: (rng.standard_normal(shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}


def _in_torch(config, mask, given, kernel="exact"):
    """The output, and the gradients of the input and of all parameters by their canonical names, of a sum of sines."""
    module = maskattn_torch.MultiHeadAttention(config)
    maskattn_torch.params.load(module, _weights(config))
    x = torch.tensor(X, requires_grad=True)
    out = module(x, mask=mask, kernel=kernel, **{name: torch.tensor(value) for name, value in given.items()})
    (out * torch.tensor(X)).sum().backward()
    for parameter in module.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return out.detach().numpy(), x.grad.numpy(), maskattn_torch.params.dump(module)


def _in_jax(config, mask, given):
    module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
    maskattn_jax.params.load(module, _weights(config))

    @nnx.jit
    def both(module, x):
        def loss(module, x):
            out = module(x, mask=mask, kernel="exact", **given)
            return (out * X).sum(), out

        (_, out), grads = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(module, x)
        return out, grads

    out, (of_module, of_x) = both(module, jnp.asarray(X))
    nnx.update(module, of_module)
    return np.asarray(out), np.asarray(of_x), maskattn_jax.params.dump(module)


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (n > 0)) for n, x in enumerate(LAYERS)])
def test_the_same_bits_in_both_twins(name):
    out, of_x, of_parameters = _in_torch(*LAYERS[name])
    other, other_x, other_parameters = _in_jax(*LAYERS[name])
    same(other, out)
    same(other_x, of_x)
    assert set(of_parameters) == set(other_parameters)
    for parameter, gradient in of_parameters.items():
        assert np.asarray(gradient).tobytes() == np.asarray(other_parameters[parameter]).tobytes(), parameter


# It calls what the module of NNX calls: that a module of Linen has its bits is shown by tests/twins/test_multihead.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits_in_linen(name):
    config, mask, given = LAYERS[name]
    module = linen.MultiHeadAttention(config)
    variables = maskattn_jax.params.load(module, _weights(config))
    out = jax.jit(lambda x: module.apply(variables, x, mask=mask, kernel="exact", **given))(jnp.asarray(X))
    same(np.asarray(out), _in_torch(*LAYERS[name])[0])


@pytest.mark.parametrize("name", LAYERS)
def test_near_the_formula(name):
    out, of_x, of_parameters = _in_torch(*LAYERS[name])
    wanted, wanted_x, wanted_parameters = _in_torch(*LAYERS[name], "reference")
    pairs = [(out, wanted), (of_x, wanted_x), *((of_parameters[n], wanted_parameters[n]) for n in of_parameters)]
    for got, near in pairs:
        got, near = np.asarray(got), np.asarray(near)
        # the gradient of a key's bias is 0
        assert np.max(np.abs(got - near)) <= standards.value("same.gradient") * max(np.max(np.abs(near)), 1)
