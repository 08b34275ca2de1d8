from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from maskattn import biases, masks
from tests.frameworks import _pytree, jax, jnp, maskattn_jax, maskattn_torch, torch

SIZES = (2, 3, 4, 5)
INDICES = np.ix_(*(np.arange(n) for n in SIZES))
MASK = masks.Causal() & masks.KeyPadding([2, 5])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (1, 3, 1, 5), (4, 1), (5,), (), (2, 1, 1, 1)])
def test_dense_bias_is_its_array(twin, shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bias = biases.DenseBias(array)
    np.testing.assert_array_equal(bias.values(*INDICES), np.broadcast_to(array, SIZES))
    found = twin.lower.bias(bias, *SIZES)
    assert tuple(found.shape) == (1,) * (4 - len(shape)) + shape
    np.testing.assert_array_equal(np.asarray(found).reshape(shape), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dense_bias_keeps_its_dtype(twin, dtype):
    bias = biases.DenseBias(np.ones((4, 5), dtype) / dtype(3))
    found = twin.lower.bias(bias, *SIZES)
    assert str(found.dtype).removeprefix("torch.") == np.dtype(dtype).name
    assert bias == twin.lower.bind(bias)  # dtype, shape and bytes
    assert bias.values(*INDICES).dtype == dtype
    assert biases.DenseBias(np.zeros(2, np.float16)) != biases.DenseBias(np.zeros(2, ml_dtypes.bfloat16))  # equal bytes


def test_gradients_flow_to_a_dense_bias():
    array = np.random.default_rng(0).standard_normal((3, 1, 5)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((1, 3, 1, 5)).astype(np.float32)
    in_jax = jax.grad(lambda a: (maskattn_jax.lower.bias(biases.DenseBias(a), *SIZES) * weight).sum())(
        jnp.asarray(array)
    )
    np.testing.assert_array_equal(in_jax, weight[0])
    tensor = torch.tensor(array, requires_grad=True)
    (maskattn_torch.lower.bias(biases.DenseBias(tensor), *SIZES) * torch.as_tensor(weight)).sum().backward()
    np.testing.assert_array_equal(tensor.grad, weight[0])


@pytest.mark.parametrize("value", [-10000.0, -0.1, -1, np.float32(-3.4028235e38)])
def test_additive_is_the_published_formula_signed_zeros_included(value):
    keep = MASK.dense(4, 5, 2, 3).astype(np.float32)
    expected = (np.float32(1) - keep) * np.float32(value)
    bias = biases.Additive(MASK, value)
    assert bias.value == float(np.float32(value))  # float64 attention adds the same number
    np.testing.assert_array_equal(bias.values(*INDICES).astype(np.float32).view(np.int32), expected.view(np.int32))
    for lower in (maskattn_jax.lower, maskattn_torch.lower):
        found = np.asarray(lower.bias(bias, *SIZES))
        assert found.dtype == np.float32 and found.shape == (2, 1, 4, 5)
        np.testing.assert_array_equal(np.broadcast_to(found, SIZES).copy().view(np.int32), expected.view(np.int32))


def test_additive_does_not_depend_on_the_default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = maskattn_torch.lower.bias(biases.Additive(MASK), *SIZES)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32 and float(found.min()) == -10000.0


def test_biases_are_pytrees():
    for bias, count in ((biases.DenseBias(np.ones((4, 5), np.float32)), 1), (biases.Additive(MASK), 1)):
        leaves, structure = jax.tree.flatten(bias)
        assert len(leaves) == len(_pytree.tree_leaves(bias)) == count
        assert jax.tree.unflatten(structure, leaves) == bias
    expected = np.asarray(maskattn_jax.lower.bias(biases.Additive(MASK), *SIZES))
    found = jax.jit(lambda b: maskattn_jax.lower.bias(b, *SIZES))(biases.Additive(MASK))
    np.testing.assert_array_equal(found, expected)
    torch._dynamo.reset()
    compiled = torch.compile(lambda b: maskattn_torch.lower.bias(b, *SIZES), fullgraph=True, backend="eager")
    np.testing.assert_array_equal(compiled(biases.Additive(MASK)), expected)
    arrays = torch.arange(3.0)[:, None] * torch.ones(5)
    found = torch.func.vmap(lambda a: maskattn_torch.lower.bias(biases.DenseBias(a), *SIZES))(arrays)
    np.testing.assert_array_equal(found[:, 0, 0, 0], arrays)


def test_a_bias_of_the_users_own(twin):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Distance(biases.Bias):
        slopes: object = masks.data()

        def values(self, b, h, q, k):
            return self.slopes[h] * (k - q)

    slopes = np.array([0.5, 0.25, 0.125], np.float32)
    expected = slopes[:, None, None] * (np.arange(5) - np.arange(4)[:, None])
    found = twin.lower.bias(Distance(slopes), *SIZES)
    np.testing.assert_array_equal(np.asarray(found), np.broadcast_to(expected, SIZES).astype(np.float32))
    assert Distance(slopes).values(*INDICES).shape == SIZES


@pytest.mark.parametrize(
    "bias, message",
    [
        (biases.DenseBias(np.zeros((4, 6))), r"DenseBias\(float64\[4, 6\]\) expects kv_len 6, got 5"),
        (biases.DenseBias(np.zeros((3, 2, 4, 5))), r"expects batch 3, got 2\n.* expects heads 2, got 3"),
        (biases.Additive(masks.KeyPadding([1, 2, 3])), r"KeyPadding.* expects batch 3, got 2"),
    ],
)
def test_sizes_that_conflict_are_named(twin, bias, message):
    with pytest.raises(ValueError, match=message):
        twin.lower.bias(bias, *SIZES)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: biases.DenseBias(np.ones((4, 5), bool)), TypeError, r"array must be a float array, got dtype bool"),
        (lambda: biases.DenseBias([[1, 2]]), TypeError, r"array must be a float array, got dtype int64"),
        (lambda: biases.DenseBias(np.zeros((1,) * 5)), ValueError, r"array must have shape broadcastable to \[B, H"),
        (
            lambda: biases.Additive(np.ones(3)),
            TypeError,
            r"Additive: mask must be a Mask, got ndarray of dtype float64",
        ),
        (lambda: biases.Additive(MASK, -np.inf), ValueError, r"value must be finite in float32, got -inf"),
        (lambda: biases.Additive(MASK, -1e39), ValueError, r"value must be finite in float32"),
        (lambda: biases.Additive(MASK, float("nan")), ValueError, r"value must be finite in float32, got nan"),
        (lambda: biases.Additive(None, "x"), TypeError, r"mask must be a Mask, got None.*\n  - value must be a number"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
