"""Calls with nothing in them, in every kernel: no batch rows, no queries, no heads, no keys, values of no width."""

import numpy as np
import pytest

from maskattn import biases, masks
from maskattn.attention import KernelCannot
from maskattn.config import AttentionConfig
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, nnx, optional, torch

pytestmark = pytest.mark.hurried

linen = optional("maskattn_jax.linen")

#: (B, L, S, H, K, Dv)
SIZES = {
    "no rows": (0, 4, 5, 4, 2, 3),
    "no queries": (2, 0, 5, 4, 2, 3),
    "no query heads": (2, 4, 5, 0, 2, 3),
    "no heads": (2, 4, 5, 0, 0, 3),
    "no keys": (2, 4, 0, 4, 2, 3),
    "no width": (2, 4, 5, 4, 2, 0),
    "nothing": (0, 0, 0, 0, 0, 0),
}
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
#: That JAX's exact kernel gives nothing is in tests/twins/test_works_wherever_jax.py, in fewer sizes.
EXACT = pytest.param("exact", marks=pytest.mark.slow_in("jax"))
every_kernel = pytest.mark.parametrize("kernel", ["auto", "reference", EXACT, "blockwise", "fused"])


def conditions(sizes):
    """Masks and biases, most with data, that such a call may have."""
    batch, q_len, kv_len, heads = sizes[:4]
    return [
        (None, None),
        (masks.KeyPadding(np.full(batch, kv_len)) & masks.SlidingWindow(2), None),
        (masks.Dense(np.ones((batch, heads, q_len, kv_len), bool)), None),
        (masks.QueryMask(np.ones((batch, q_len), bool)), biases.DenseBias(np.zeros((q_len, kv_len), np.float32))),
        (masks.Causal().with_positions(np.zeros((batch, q_len), int), np.zeros((batch, kv_len), int)), None),
        (masks.Causal(), None),
        (masks.Causal().at(np.zeros(batch, int)), biases.ALiBi(max(heads, 1))),
    ]


def arrays(twin, sizes):
    batch, q_len, kv_len, heads, kv_heads, v_dim = sizes
    shapes = ((batch, q_len, heads, 6), (batch, kv_len, kv_heads, 6), (batch, kv_len, kv_heads, v_dim))
    return [twin.array(np.ones(shape, np.float32)) for shape in shapes]


def output_shape(sizes):
    batch, q_len, _, heads, _, v_dim = sizes
    return batch, q_len, heads, v_dim


@every_kernel
@every_size
def test_nothing_gives_nothing(twin, sizes, kernel):
    asked = conditions(sizes)[1:]
    if twin.name == "jax" and kernel != "blockwise":  # they take long to compile: one with data, and it differs
        asked = [asked[-1] if sizes[0] and sizes[2] else asked[0]]
    gives_nothing(twin, sizes, kernel, asked)


@pytest.mark.slow
@every_size
@pytest.mark.parametrize("kernel", ["auto", "reference", "exact"])
def test_nothing_gives_nothing_with_what_takes_long_to_compile(twin, sizes, kernel):
    gives_nothing(twin, sizes, kernel, conditions(sizes))


def gives_nothing(twin, sizes, kernel, asked):
    given = arrays(twin, sizes)
    for mask, bias in asked:

        def attend(*given, mask=mask, bias=bias):
            return twin.attention(*given, mask, bias=bias, kernel=kernel)

        try:
            output = twin.to_numpy(attend(*given))
        except KernelCannot as error:
            assert kernel == "fused" and "takes no empty" in str(error)
            return
        assert output.shape == output_shape(sizes) and output.dtype == np.float32
        gradients = twin.grad(lambda *given: attend(*given).sum(), *given)
        assert [x.shape for x in gradients] == [tuple(x.shape) for x in given]
        assert not any(x.any() for x in gradients)


@every_size
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 3.0}, {"dropout_rate": 0.3, "dropout_key": 7}, {"empty_rows": "nan"}, {"blocks": (2, 2)}],
    ids=str,
)
def test_options_and_the_log_sum_exp(twin, sizes, options):
    given = arrays(twin, sizes)
    mask = masks.Causal() & masks.KeyPadding(np.full(sizes[0], sizes[2]))
    for sinks in (None, twin.array(np.zeros(sizes[3], np.float32))):
        output, lse = twin.attention(*given, mask, sinks=sinks, kernel="blockwise", return_lse=True, **options)
        assert tuple(output.shape) == output_shape(sizes) and tuple(lse.shape) == output_shape(sizes)[:3]
        if sizes[2] == 0:  # no keys: the sink alone, whose logit is 0
            assert (twin.to_numpy(lse) == (-np.inf if sinks is None else 0)).all()


@every_size
def test_nothing_gives_nothing_compiled(twin, sizes):
    mask = masks.Causal() & masks.KeyPadding(twin.array(np.full(sizes[0], sizes[2], np.int32)))
    run = twin.compile(lambda mask, *given: twin.attention(*given, mask, kernel="blockwise"))
    assert tuple(run(mask, *arrays(twin, sizes)).shape) == output_shape(sizes)


@every_size
def test_the_shape_is_that_of_sdpa(sizes):
    batch, q_len, kv_len, heads, _, v_dim = sizes
    shapes = (batch, q_len, heads, 6), (batch, kv_len, heads, 6), (batch, kv_len, heads, v_dim)
    q, k, v = (torch.ones(shape) for shape in shapes)
    own = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    assert maskattn_torch.attention(q, k, v).shape == own.transpose(1, 2).shape


@pytest.mark.parametrize("shape", [(0, 4, 2, 6), (2, 0, 2, 6)], ids=str)
def test_the_shape_is_that_of_jax_nn(shape):
    q, k = jnp.ones(shape), jnp.ones((shape[0], 5, 2, 6))
    assert maskattn_jax.attention(q, k, k).shape == jax.nn.dot_product_attention(q, k, k).shape == shape


@pytest.mark.parametrize("shape", [(0, 4, 12), (2, 0, 12)], ids=str)
def test_modules_take_nothing(shape):
    config, x = AttentionConfig(12, 3), np.ones(shape, np.float32)
    mask = masks.KeyPadding(np.full(shape[0], shape[1]))
    module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
    layer = linen.MultiHeadAttention(config)
    variables = layer.init(jax.random.key(0), jnp.ones((1, 2, 12)))
    assert module(x, mask=mask).shape == layer.apply(variables, x, mask=mask).shape == shape
    assert maskattn_torch.MultiHeadAttention(config)(torch.tensor(x), mask=mask).shape == shape
    gradient = jax.grad(lambda variables: layer.apply(variables, x, mask=mask).sum())(variables)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
