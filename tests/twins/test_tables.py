"""Gradients of learned tables: right in every kernel, and of the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from maskattn import biases, masks, standards
from maskattn._fields import to_numpy
from maskattn.numerics import exact
from maskattn.numerics.exact import table as exact_table
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, torch

pytestmark = pytest.mark.hurried

RNG = np.random.default_rng(0)
B, H, K, D = 2, 4, 2, 3
#: name -> (length, the bias from its table, the table)
TABLES = {
    "t5": (11, lambda t: biases.T5Buckets(t, 7), RNG.standard_normal((9, H))),
    "t5 shared, with an offset per row": (
        7,
        lambda t: biases.T5Buckets(t, 7, False, offset=np.array([0, 3])),
        RNG.standard_normal((6, 1)),
    ),
    "swin": (6, lambda t: biases.RelativeTable(t, (2, 3)), RNG.standard_normal((15, H))),
}
kinds = pytest.mark.parametrize("kind", TABLES)


def make(kind, dtype=np.float32):
    length, bias, table = TABLES[kind]
    shapes = [(B, length, H, D), (B, length, K, D), (B, length, K, D), (B, length, H, D)]
    arrays = [RNG.standard_normal(shape).astype(dtype) for shape in shapes]
    mask = masks.Causal(2) & masks.KeyPadding([length, 4])
    return bias, table.astype(dtype), mask, arrays


def in_torch(bias, table, mask, arrays, kernel):
    q, k, v, cotangent = map(torch.as_tensor, arrays)
    leaf = torch.tensor(table, requires_grad=True)
    out = maskattn_torch.attention(q, k, v, mask, bias=bias(leaf), kernel=kernel)
    return torch.autograd.grad((out * cotangent).sum(), leaf)[0].numpy()


def in_jax(bias, table, mask, arrays, kernel):
    def loss(table, q, k, v, cotangent):
        return (maskattn_jax.attention(q, k, v, mask, bias=bias(table), kernel=kernel) * cotangent).sum()

    return np.asarray(jax.jit(jax.grad(loss))(table, *arrays))


def in_numpy(bias, table, mask, arrays):
    """The exact arithmetic in NumPy: the bias as an array, then its gradient summed into the table."""
    q, k, v, cotangent = arrays
    length = q.shape[1]
    node = bias(table)
    b, h, i, j = np.ix_(
        range(B if "b" in node.depends else 1), range(H if "h" in node.depends else 1), *[range(length)] * 2
    )
    rows = np.broadcast_to(node.rows(b, i, j), (len(b), 1, length, length))
    allowed = mask.dense(length, length, B, H)
    d_bias = exact.attention_backward(q, k, v, allowed, cotangent, bias=node.values(b, h, i, j))[3]
    return exact_table.row_sums(exact.NumpyOps(), d_bias, rows, np.arange(len(table)))


@kinds
def test_exact_gradients_have_the_same_bits_everywhere(kind):
    args = make(kind)
    expected = in_numpy(*args)
    assert expected.any() and expected.dtype == np.float32 and expected.shape == args[1].shape
    found = {"torch": in_torch(*args, "exact"), "jax": in_jax(*args, "exact")}
    for how, value in found.items():
        assert value.tobytes() == expected.tobytes() and value.dtype == np.float32, how


@kinds
def test_the_reference_kernel_agrees_with_the_exact_one(kind):
    args = make(kind)
    expected = in_numpy(*args)
    for found in (in_torch(*args, "reference"), in_jax(*args, "reference")):
        np.testing.assert_allclose(found, expected, rtol=0, atol=standards.value("same.gradient"))


@kinds
def test_against_finite_differences(kind):
    bias, table, mask, arrays = make(kind, np.float64)
    q, k, v, _ = map(torch.as_tensor, arrays)
    leaf = torch.tensor(table, requires_grad=True)

    def run(kernel):
        return lambda t: maskattn_torch.attention(q, k, v, mask, bias=bias(t), kernel=kernel)

    assert torch.autograd.gradcheck(run("exact"), leaf, fast_mode=True)
    if kind == "swin":
        assert torch.autograd.gradgradcheck(run("reference"), leaf, fast_mode=True)


def test_sums_are_right_whatever_cancels():
    """Thousands of numbers of both signs per row, against Python's exact fsum; NaN stays in its rows."""
    from math import fsum

    values = RNG.standard_normal((2, 3, 40, 30)).astype(np.float32) * np.float32(10) ** RNG.integers(
        -8, 8, (2, 3, 40, 30)
    )
    values = values.astype(np.float32)
    rows = RNG.integers(0, 5, (2, 1, 40, 30))
    found = exact_table.row_sums(exact.NumpyOps(), values, rows, np.arange(6))
    for r, h in np.ndindex(6, 3):
        assert found[r, h] == np.float32(fsum(values[:, h][rows[:, 0] == r].astype(np.float64)))
    in_torch = maskattn_torch.tables.row_sums(torch.as_tensor(values), torch.as_tensor(rows), 6)
    in_jax = maskattn_jax.tables.row_sums(jnp.asarray(values), jnp.asarray(rows), 6)
    assert in_torch.numpy().tobytes() == np.asarray(in_jax).tobytes() == found.tobytes()
    values[1, 2, 3, 4] = np.inf
    found = exact_table.row_sums(exact.NumpyOps(), values, rows, np.arange(6))
    assert np.argwhere(np.isnan(found)).tolist() == [[rows[1, 0, 3, 4], 2]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_tables_keep_their_dtype(dtype):
    table = torch.randn(15, H).to(getattr(torch, dtype)).requires_grad_()
    values = maskattn_torch.lower.bias(biases.RelativeTable(table, (2, 3)), 2, H, 6, 6)
    (d_table,) = torch.autograd.grad(values.sum(), table)
    assert values.dtype == d_table.dtype == table.dtype
    # of 6 x 6 places, (2 - |dy|) * (3 - |dx|) have the offset (dy, dx)
    counts = np.outer([1, 2, 1], [1, 2, 3, 2, 1]).reshape(-1)
    np.testing.assert_array_equal(to_numpy(d_table).astype(np.float64), np.repeat(counts[:, None], H, 1))


# Dynamo itself instantiates the autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_inside_vmap_and_compile():
    tables = torch.randn(2, 15, H)
    weight = torch.randn(1, H, 6, 6)

    def loss(table):
        return (maskattn_torch.lower.bias(biases.RelativeTable(table, (2, 3)), 1, H, 6, 6) * weight).sum()

    expected = torch.stack([torch.func.grad(loss)(table) for table in tables])
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(tables), expected)
    torch._dynamo.reset()
    leaf = tables[0].clone().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(leaf), leaf)[0], expected[0])

    def loss_jax(table):
        bias = maskattn_jax.lower.bias(biases.RelativeTable(table, (2, 3)), 1, H, 6, 6)
        return (bias * weight.numpy()).sum()

    found = jax.vmap(jax.grad(loss_jax))(jnp.asarray(tables))
    assert np.asarray(found).tobytes() == expected.numpy().tobytes()


def test_learned_slopes_of_alibi():
    slopes = torch.tensor([0.5, 0.25], requires_grad=True)
    values = maskattn_torch.lower.bias(biases.ALiBi(2, slopes), 1, 2, 3, 3)
    assert torch.equal(torch.autograd.grad(values.sum(), slopes)[0], torch.tensor([-8.0, -8.0]))
    found = jax.grad(lambda s: maskattn_jax.lower.bias(biases.ALiBi(2, s), 1, 2, 3, 3).sum())(jnp.array([0.5, 0.25]))
    np.testing.assert_array_equal(found, [-8.0, -8.0])
