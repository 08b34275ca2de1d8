"""Masks lowered to other attention functions, judged by those functions themselves."""

from __future__ import annotations

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.parity.attention.cases import Shape
from maskattn.parity.attention.cases.mask_table import families
from maskattn.parity.draws import Draws
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, optional, torch

pytestmark = pytest.mark.hurried

splash = optional("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask")
create_block_mask = optional("torch.nn.attention.flex_attention.create_block_mask")
flex_attention = optional("torch.nn.attention.flex_attention.flex_attention")

CLASSES = list(families().values())
#: odd lengths; a square; and a batch and grid that windows fit
SHAPES = [Shape(2, 19, 29, 2, 2, 4, 4), Shape(2, 13, 13, 2, 2, 4, 4), Shape(4, 36, 36, 2, 2, 4, 4)]
RNG = np.random.default_rng(0)
EXTRA = [
    (masks.Causal(3) & masks.KeyPadding([29, 11])) | masks.PrefixLM(2),
    (masks.SlidingWindow(4, 1) & masks.Dense(RNG.random((1, 2, 19, 29)) < 0.7)).at(0, 0),
    ~masks.Causal(5) & masks.KeyMask(RNG.random((2, 29)) < 0.6),
    masks.Causal(2).with_positions(RNG.permutation(19)[None], RNG.permutation(29)[None]),
]


def sizes(shape):
    return shape.batch, shape.heads, shape.q_len, shape.kv_len


def every_mask(every_shape=True):
    """All examples for every shape, or the first for the first shape that it fits; and compositions."""
    for cls in CLASSES:
        for number, shape in enumerate(SHAPES):
            found = cls.examples(shape, Draws(f"lowerings/{cls.__name__}/{number}"))
            found = found if every_shape else found[:1]
            yield from ((mask, shape) for mask in found)
            if found and not every_shape:
                break
    yield from ((mask, SHAPES[0]) for mask in EXTRA)


def arrays(shape, seed=0):
    rng = np.random.default_rng(seed)
    dims = [(shape.q_len, shape.heads), (shape.kv_len, shape.kv_heads), (shape.kv_len, shape.kv_heads)]
    return [rng.standard_normal((shape.batch, *dim, shape.head_dim)).astype(np.float32) for dim in dims]


# FlexAttention


def blocks(count, indices):
    """The chosen blocks of each row, as sets."""
    return [set(indices[at][: int(count[at])].tolist()) for at in np.ndindex(tuple(count.shape))]


def assert_same_blocks(found, expected):
    for names in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
        ("q_num_blocks", "q_indices"),
        ("full_q_num_blocks", "full_q_indices"),
    ):
        pairs = []
        for mask in (found, expected):
            count, indices = (getattr(mask, name) for name in names)
            assert count.dtype == indices.dtype == torch.int32
            shape = expected.kv_num_blocks.shape[:2]
            pairs.append(blocks(count.expand(*shape, -1), indices.expand(*shape, -1, -1)))
        assert pairs[0] == pairs[1], names
    assert found.seq_lengths == expected.seq_lengths and found.BLOCK_SIZE == expected.BLOCK_SIZE


def test_block_masks_are_those_of_create_block_mask():
    count = 0
    for mask, shape in every_mask():
        size = ((8, 8), (4, 16))[count % 2]
        bound = maskattn_torch.lower.bind(mask)
        expected = create_block_mask(
            lambda b, h, q, k, m=bound: m.allowed(b, h, q, k), *sizes(shape), device="cpu", BLOCK_SIZE=size
        )
        found = maskattn_torch.lower.to_block_mask(mask, *sizes(shape), size)
        assert_same_blocks(found, expected)
        count += 1
    assert count > 40


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask", [*EXTRA, masks.Causal(-5), masks.Empty(), masks.Full()], ids=repr)
def test_flex_attention_gives_what_we_give(mask):
    q, k, v = map(torch.as_tensor, arrays(SHAPES[0]))
    block_mask = maskattn_torch.lower.to_block_mask(mask, *sizes(SHAPES[0]), 8)
    found = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block_mask).transpose(1, 2)
    expected = maskattn_torch.attention(q, k, v, mask, kernel="reference")
    torch.testing.assert_close(found, expected, rtol=0, atol=standards.value("same.kernel"))
    empty = ~torch.as_tensor(mask.dense(19, 29, 2, 2)).any(-1).transpose(1, 2)
    assert (found[empty] == 0).all()


def test_block_masks_of_bounds_alone_are_sound():
    # a window's edge crosses some blocks that its bounds cannot decide when it is cut by another mask
    mask = masks.Dense(np.tri(32, dtype=bool)) & masks.SlidingWindow(3)
    loose = maskattn_torch.lower.to_block_mask(mask, 1, 1, 32, 32, 8, exact=False).to_dense()
    tight = maskattn_torch.lower.to_block_mask(mask, 1, 1, 32, 32, 8).to_dense()
    assert (loose >= tight).all()


def test_a_long_block_mask_needs_no_dense_mask():
    n = 1 << 16
    found = maskattn_torch.lower.to_block_mask(masks.Causal() & masks.SlidingWindow(255), 1, 1, n, n)
    assert found.kv_num_blocks.sum() == 2 * 512 - 2 and found.full_kv_num_blocks.sum() == 511


# jax.nn.dot_product_attention


def keep(keywords, shape):
    """What jax.nn allows for these keywords: its own masks, read off logits of 0."""
    from jax._src.nn.functions import _apply_masks

    logits = jnp.zeros(shape.scores, jnp.float32)
    given = {name: keywords.get(name) for name in ("mask", "local_window_size")}
    lengths = {"q_seqlen": keywords.get("query_seq_lengths"), "kv_seqlen": keywords.get("key_value_seq_lengths")}
    return np.asarray(_apply_masks(logits, is_causal=keywords.get("is_causal", False), **given, **lengths)) == 0


def test_jax_nn_allows_what_the_mask_allows():
    names = set()
    for mask, shape in every_mask(every_shape=False):
        keywords = maskattn_jax.lower.to_dot_product_attention(mask, *sizes(shape), empty_rows="mean")
        names |= keywords.keys()
        np.testing.assert_array_equal(keep(keywords, shape), mask.dense(shape.q_len, shape.kv_len, shape.batch, 2))
    assert names >= {"is_causal", "local_window_size", "key_value_seq_lengths", "mask"}


@pytest.mark.parametrize(
    "mask, expected",
    [
        (masks.Full(), {}),
        (masks.Causal(), {"is_causal": True}),
        (masks.Causal() & masks.SlidingWindow(4), {"is_causal": True, "local_window_size": (4, 0)}),
        (masks.SlidingWindow(4, 2) & masks.SlidingWindow(3, 6), {"local_window_size": (3, 2)}),
        (masks.SlidingWindow(None, 2), {"local_window_size": (13, 2)}),
        (masks.SlidingWindow(3, None), {"local_window_size": (3, 13)}),
        (masks.Causal(5).at(1, 6), {"is_causal": True}),
        (masks.KeyPadding([13, 9]) & masks.KeyPadding([7]), {"key_value_seq_lengths": [7, 7]}),
        (masks.KeyMask(np.tri(13, dtype=bool)[[3, 5]]), {"key_value_seq_lengths": [4, 6]}),
        (masks.QueryMask(np.tri(13, dtype=bool)[[3, 5]]), {"query_seq_lengths": [4, 6]}),
    ],
    ids=repr,
)
def test_jax_nn_keywords_are_used_where_they_say_it(mask, expected):
    shape = SHAPES[1]
    found = maskattn_jax.lower.to_dot_product_attention(mask, *sizes(shape))
    assert {name: np.asarray(x).tolist() if hasattr(x, "dtype") else x for name, x in found.items()} == expected
    assert all(x.dtype == jnp.int32 for name, x in found.items() if name.endswith("lengths"))
    q, k, v = map(jnp.asarray, arrays(shape))
    ours = maskattn_jax.attention(q, k, v, mask, kernel="reference")
    theirs = jax.nn.dot_product_attention(q, k, v, **found)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=standards.value("same.kernel"))


def test_jax_nn_under_jit():
    q, k, v = map(jnp.asarray, arrays(SHAPES[1]))

    @jax.jit
    def run(lengths):
        mask = masks.KeyPadding(lengths) & masks.Causal()
        keywords = maskattn_jax.lower.to_dot_product_attention(mask, 2, 2, 13, 13, empty_rows="mean")
        return jax.nn.dot_product_attention(q, k, v, **keywords)

    lengths = np.array([5, 13])
    ours = maskattn_jax.attention(q, k, v, masks.KeyPadding(lengths) & masks.Causal(), kernel="reference")
    np.testing.assert_allclose(run(lengths), ours, rtol=0, atol=standards.value("same.kernel"))


# TPU Splash attention


def test_splash_masks_are_the_masks():
    count = 0
    for mask, shape in every_mask():
        if "b" in mask.depends or not mask.dense(shape.q_len, shape.kv_len, 1, 2).any(-1).all():
            continue
        found = maskattn_jax.lower.to_splash_mask(mask, 2, shape.q_len, shape.kv_len)
        assert isinstance(found, splash.MultiHeadMask) and found.shape == (2, shape.q_len, shape.kv_len)
        heads = [np.broadcast_to(m[:, :], found.shape[1:]) for m in found.masks]
        np.testing.assert_array_equal(heads, mask.dense(shape.q_len, shape.kv_len, 1, 2)[0])
        count += 1
    assert count > 8


@pytest.mark.parametrize(
    "mask, kinds",
    [
        (masks.Full(), ["FullMask"]),
        (masks.Causal(2), ["CausalMask"]),
        (masks.SlidingWindow(4, 1), ["LocalMask"]),
        (masks.SlidingWindow(2, None).at(-3), ["LocalMask"]),
        (masks.Causal() & masks.SlidingWindow(4), ["LocalMask"]),
        (masks.Causal() | masks.Dense(np.eye(13, dtype=bool)), ["LogicalOr", "CausalMask", "NumpyMask"]),
        (masks.Dense(np.tri(13, dtype=bool)) & masks.Causal(), ["LogicalAnd", "NumpyMask", "CausalMask"]),
    ],
    ids=repr,
)
def test_splash_has_its_own_word_for_these(mask, kinds):
    found = maskattn_jax.lower.to_splash_mask(mask, 2, 13, 13).masks[1]
    parts = [found, *(getattr(found, side) for side in ("left", "right") if hasattr(found, side))]
    assert [type(part).__name__ for part in parts] == kinds
    np.testing.assert_array_equal(np.broadcast_to(found[:, :], (13, 13)), mask.dense(13, 13)[0, 0])


# refusals

ODD = masks.Causal() & masks.KeyPadding([3, 5])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: maskattn_torch.lower.to_block_mask(None, 1, 1, 0, 3, (8, 0)),
            TypeError,
            r"mask must be a Mask, got None(.|\n)*block_size\[1\] must be at least 1(.|\n)*no BlockMask of length 0",
        ),
        (lambda: maskattn_torch.lower.to_block_mask(ODD, 3, 1, 5, 5), ValueError, "expects batch 2, got 3"),
        (
            lambda: torch.func.vmap(
                lambda x: maskattn_torch.lower.to_block_mask(masks.KeyPadding(x), 1, 1, 5, 5).kv_indices
            )(torch.ones(2, 1, dtype=torch.int64)),
            ValueError,
            "the data of KeyPadding.* are traced",
        ),
        (
            lambda: maskattn_jax.lower.to_dot_product_attention(3, 1, 1, 5, 5, empty_rows="zero"),
            TypeError,
            r"mask must be a Mask, got 3(.|\n)*empty_rows must be one of error, mean, got 'zero'",
        ),
        (
            lambda: maskattn_jax.lower.to_dot_product_attention(masks.Causal(-2), 1, 1, 5, 5),
            ValueError,
            r"2 of 5 rows may attend to no key, the first .* = \(0, 0, 0\): jax.nn gives the average",
        ),
        (
            lambda: jax.jit(lambda x: maskattn_jax.lower.to_dot_product_attention(masks.KeyPadding(x), 1, 1, 5, 5))(
                np.array([2])
            ),
            ValueError,
            'empty_rows="error" cannot be checked where the data are traced',
        ),
        (
            lambda: jax.jit(
                lambda x: maskattn_jax.lower.to_splash_mask(
                    masks.KeyPadding(x) & masks.KeyMask(np.ones((2, 5), bool)), 1, 5, 5
                )
            )(np.array([2, 3])),
            ValueError,
            r"traced data(.|\n)*KeyPadding.* differs between batch rows(.|\n)*KeyMask.* differs between batch rows",
        ),
        (
            lambda: maskattn_jax.lower.to_splash_mask(masks.Causal(-1), 1, 5, 5),
            ValueError,
            "1 of 5 rows may attend to no key, .*: what Splash gives there is undefined",
        ),
        (
            lambda: maskattn_jax.lower.to_splash_mask(masks.Causal(), 0, 5, 0),
            ValueError,
            "heads (.|\n)*kv_len must be at",
        ),
    ],
)
def test_what_a_target_cannot_express_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
