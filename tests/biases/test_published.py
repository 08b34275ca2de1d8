"""ALiBi, T5's buckets and Swin's table against their published definitions, and in every framework."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from maskattn import biases, standards
from maskattn.arrays import to_numpy
from maskattn.biases.t5_buckets import boundaries
from tests.frameworks import _pytree, jax, jnp, maskattn_jax, maskattn_torch, torch
from tests.twin import same

TWINS = {"jax": maskattn_jax.lower, "torch": maskattn_torch.lower}
SIZES = (2, 3, 6, 6)
INDICES = np.ix_(*(np.arange(n) for n in SIZES))
RNG = np.random.default_rng(0)
BIASES = [
    biases.ALiBi(3),
    biases.ALiBi(3, form="key"),
    biases.ALiBi(1, offset=np.array([5, 300])),
    biases.ALiBi(3, RNG.random(3).astype(np.float32), offset=70000),
    biases.T5Buckets(RNG.standard_normal((8, 3)).astype(np.float32), max_distance=6),
    biases.T5Buckets(RNG.standard_normal((5, 1)).astype(np.float16), 4, bidirectional=False, offset=np.array([2, -3])),
    biases.RelativeTable(RNG.standard_normal((15, 3)).astype(ml_dtypes.bfloat16), (2, 3)),
    biases.RelativeTable(RNG.standard_normal((11, 1)).astype(np.float32), (6,)),
]
every_bias = pytest.mark.parametrize("bias", BIASES, ids=repr)


@every_bias
def test_the_same_bits_in_numpy_jax_and_pytorch(bias):
    expected = bias.values(*INDICES)
    assert expected.shape == SIZES
    assert np.all(np.isfinite(expected.astype(np.float64)))
    found = {
        "jax": jax.jit(lambda bias: maskattn_jax.lower.bias(bias, *SIZES))(bias),
        "jax eager": maskattn_jax.lower.bias(bias, *SIZES),
        "torch": maskattn_torch.lower.bias(bias, *SIZES),
    }
    reads = tuple(size if name in bias.depends else 1 for name, size in zip("bhqk", SIZES, strict=True))
    for how, value in found.items():
        assert tuple(value.shape) == reads, how
        same(np.broadcast_to(to_numpy(value), SIZES), expected)
    leaves, structure = jax.tree.flatten(bias)
    assert jax.tree.unflatten(structure, leaves) == bias and len(leaves) == len(_pytree.tree_leaves(bias))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7, 8, 12, 16, 20, 32, 71, 112])
def test_alibi_has_the_published_slopes(heads):
    """Falcon-7B has 71 heads, BLOOM 112; build_alibi_tensor computes in float32, some 3 ulp from the exact power."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    published = build_alibi_tensor(torch.ones(1, 5, dtype=torch.int64), heads, torch.float32)[:, 0].numpy()
    bias = biases.ALiBi(heads, form="key")
    found = bias.values(0, np.arange(heads)[:, None], 0, np.arange(5))
    np.testing.assert_allclose(found, published, rtol=standards.value("published.float32"), atol=0)
    # the code of the paper, in float64: https://github.com/ofirpress/attention_with_linear_biases
    near = 2 ** int(np.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / near) for i in range(near)]
    slopes += [2 ** (-8 * (i + 1) / (2 * near)) for i in range(2 * near)][0::2][: heads - near]
    assert bias.slopes.tolist() == np.float32(slopes).tolist()


def test_alibi_forms_differ_by_a_constant_of_the_row_where_causal():
    q, k = np.arange(9)[:, None], np.arange(9)
    distance, key = (biases.ALiBi(8, form=form).values(0, 3, q, k) for form in ("distance", "key"))
    rows = (key - distance)[:, :1]
    causal = k <= q
    np.testing.assert_array_equal((key - distance)[causal], np.broadcast_to(rows, (9, 9))[causal])
    np.testing.assert_array_equal(distance, distance.T)
    assert distance[0, 0] == 0 and not np.signbit(distance[0, 0])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (64, 256), (32, 256), (12, 20), (33, 1000), (8, 16)])
def test_t5_buckets_are_those_of_transformers(bidirectional, buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    apart = np.arange(-20000, 20001)
    expected = T5Attention._relative_position_bucket(torch.as_tensor(apart), bidirectional, buckets, max_distance)
    bias = biases.T5Buckets(np.zeros((buckets, 1)), max_distance, bidirectional)
    found = bias.rows(0, 0, apart)
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(bias.rows(0, torch.zeros(1).long(), torch.as_tensor(apart)), found)
    np.testing.assert_array_equal(jax.jit(lambda k: bias.rows(0, 0, k))(jnp.asarray(apart)), found)


def test_t5_boundaries_are_the_real_ones():
    from fractions import Fraction

    for buckets, far in ((16, 128), (32, 128), (9, 31), (100, 10**9), (2, 3)):
        exact, steps = buckets // 2, buckets - buckets // 2
        for j, begin in enumerate(boundaries(buckets, far), start=1):
            for distance, reached in ((begin, True), (begin - 1, False)):
                assert (Fraction(distance, exact) ** steps >= Fraction(far, exact) ** j) is reached
    # T5's own: 8 * 16^(j / 8) = 8 * 2^(j / 2), the even ones whole numbers
    assert boundaries(16, 128) == (12, 16, 23, 32, 46, 64, 91)


def test_t5_offset_is_the_position_of_the_first_query():
    table = np.random.default_rng(0).standard_normal((32, 2))
    whole = biases.T5Buckets(table).values(*np.ix_([0], [0, 1], range(40), range(40)))
    last = biases.T5Buckets(table, offset=37).values(*np.ix_([0], [0, 1], range(3), range(40)))
    np.testing.assert_array_equal(last, whole[:, :, 37:])
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(num_heads=2, d_model=8, d_kv=4, d_ff=8, is_decoder=True)
    layer = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    weight = layer.relative_attention_bias.weight
    found = maskattn_torch.lower.bias(biases.T5Buckets(weight, bidirectional=False, offset=37), 1, 2, 3, 40)
    assert torch.equal(found, layer.compute_bias(3, 40, past_seen_tokens=37))


@pytest.mark.parametrize("window", [(7, 7), (2, 5), (3, 1)])
def test_relative_table_is_swins(window):
    """The index as the official code makes it: coordinates, differences, shifted to start at 0, then combined."""
    coordinates = np.stack(np.meshgrid(*(np.arange(n) for n in window), indexing="ij")).reshape(2, -1)
    relative = (coordinates[:, :, None] - coordinates[:, None, :]).transpose(1, 2, 0)
    relative = relative + np.array(window) - 1
    index = relative[..., 0] * (2 * window[1] - 1) + relative[..., 1]
    table = np.random.default_rng(0).standard_normal(((2 * window[0] - 1) * (2 * window[1] - 1), 4))
    n = window[0] * window[1]
    bias = biases.RelativeTable(table, window)
    np.testing.assert_array_equal(bias.rows(0, np.arange(n)[:, None], np.arange(n)), index)
    expected = table[index.reshape(-1)].reshape(n, n, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(bias.values(*np.ix_([0], range(4), range(n), range(n)))[0], expected)


def test_relative_table_is_that_of_transformers():
    from transformers.models.swin.modeling_swin import SwinRelativePositionBias

    layer = SwinRelativePositionBias(3, (4, 4))
    table = torch.randn(49, 3)
    with torch.no_grad():
        layer.relative_position_bias_table.copy_(table)
    found = maskattn_torch.lower.bias(biases.RelativeTable(table, (4, 4)), 1, 3, 16, 16)
    assert torch.equal(found, layer().detach())


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: biases.ALiBi(0), ValueError, "heads must be at least 1, got 0"),
        (lambda: biases.ALiBi(2, np.ones(2)), TypeError, "slopes must be a float32 array, got dtype float64"),
        (lambda: biases.ALiBi(2, np.ones(3, np.float32)), ValueError, r"one per head, \[2\], got \[3\]"),
        (lambda: biases.ALiBi(2, form="row"), ValueError, "form must be one of distance, key, got 'row'"),
        (lambda: biases.ALiBi(2, offset=1.5), TypeError, "offset must be an int, got 1.5"),
        (lambda: biases.T5Buckets(np.ones(3)), ValueError, r"table must have shape \[buckets, H\], got \[3\]"),
        (lambda: biases.T5Buckets(np.ones((3, 2))), ValueError, "at least 4 buckets, got 3"),
        (lambda: biases.T5Buckets(np.ones((32, 2)), 8), ValueError, "max_distance must exceed 8, .* got 8"),
        (
            lambda: biases.T5Buckets(np.ones((32, 2), int), 128.5, 1),
            TypeError,
            "got dtype int64(.|\n)*128.5(.|\n)*True or",
        ),
        (lambda: biases.RelativeTable(np.ones((9, 2)), (2, 3)), ValueError, r"15 rows, .* window \(2, 3\), got 9"),
        (lambda: biases.RelativeTable(np.ones((9, 2)), ()), ValueError, "window must have 1 to 3 axes"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    "bias, message",
    [
        (biases.ALiBi(4), "expects heads 4, got 3"),
        (biases.T5Buckets(np.zeros((32, 2)), offset=[1, 2, 3]), r"expects heads 2, got 3\n.* expects batch 3, got 2"),
        (biases.RelativeTable(np.zeros((9, 3)), (2, 2)), r"expects q_len 4, got 6\n.* expects kv_len 4, got 6"),
    ],
)
def test_sizes_that_conflict_are_named(twin, bias, message):
    with pytest.raises(ValueError, match=message):
        TWINS[twin].bias(bias, *SIZES)
