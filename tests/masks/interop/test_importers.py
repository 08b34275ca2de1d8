"""Importers against the libraries themselves; round trips bit for bit; refusals with value and place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.parity.attention.cases import Shape
from maskattn.parity.attention.cases.mask_table import families
from maskattn.parity.draws import Draws
from tests.frameworks import jax, jnp, maskattn_jax, optional, torch
from tests.twin import same

nn = optional("flax.linen")

CLASSES = list(families().values())
SHAPES = [Shape(2, 5, 7, 3, 3, 4, 4), Shape(2, 9, 9, 2, 2, 4, 4), Shape(4, 16, 16, 2, 2, 4, 4)]
RNG = np.random.default_rng(0)


def every_mask():
    for cls in CLASSES:
        for number, shape in enumerate(SHAPES):
            for mask in cls.examples(shape, Draws(f"importers/{cls.__name__}/{number}")):
                yield mask, (shape.q_len, shape.kv_len, shape.batch, shape.heads)


# every mask of the library, through every exporter and back


def test_every_mask_comes_back_from_every_array():
    count = 0
    for mask, sizes in every_mask():
        dense = mask.dense(*sizes)
        for back in (
            masks.from_torch_mha(*masks.to_torch_mha(mask, *sizes), num_heads=sizes[3]),
            masks.from_additive(masks.to_additive(mask, np.float16, *sizes)),
            masks.from_additive(masks.to_additive(mask, "bfloat16", *sizes, drop_at=-9984.0), drop_at=-1e4),
            masks.from_hf(masks.to_hf(mask, *sizes)),
            masks.from_hf(masks.to_hf(mask, *sizes, dtype=ml_dtypes.bfloat16)),
            masks.from_hf(masks.to_hf(mask, *sizes, dtype=bool)),
            masks.from_flax(masks.to_flax(mask, *sizes)),
            masks.from_flax(masks.to_flax(mask, *sizes, dtype=np.float32)),
        ):
            same(back.dense(*sizes), dense)
        count += 1
    assert count > 40


def test_arrays_come_back_as_they_were():
    keep = RNG.random((2, 3, 5, 7)) < 0.5
    padding = RNG.random((2, 7)) < 0.5
    sizes = (5, 7, 2, 3)
    attn_mask, key_padding_mask = masks.to_torch_mha(masks.from_torch_mha(keep[0, 0], padding), *sizes)
    same(attn_mask, keep[0, 0])
    same(key_padding_mask, padding)
    stacked = keep.reshape(6, 5, 7)
    same(masks.to_torch_mha(masks.from_torch_mha(stacked, num_heads=3), *sizes)[0], stacked)
    assert masks.to_torch_mha(masks.from_torch_mha(), *sizes) == (None, None)
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        for drop_at in (None, -1e4, -np.inf):
            least = ml_dtypes.finfo(dtype).min if drop_at is None else drop_at
            bias = np.where(keep, 0.0, least).astype(dtype)
            same(masks.to_additive(masks.from_additive(bias, drop_at), dtype, *sizes, drop_at=drop_at), bias)
        hf = np.where(keep[:, :1], 0.0, ml_dtypes.finfo(dtype).min).astype(dtype)
        same(masks.to_hf(masks.from_hf(hf), *sizes, dtype=dtype), hf)
    ones = padding.astype(np.int64)
    same(masks.to_hf(masks.from_hf(ones), *sizes), ones)
    for shape in ((2, 1, 5, 7), (2, 3, 5, 7), (2, 1, 1, 7), (1, 1, 5, 7)):
        for dtype in (bool, np.float32, np.int32):
            mask = (RNG.random(shape) < 0.5).astype(dtype)
            same(masks.to_flax(masks.from_flax(mask), *sizes, dtype=dtype), mask)


def test_windows_come_back():
    for q_len, kv_len in ((4, 4), (3, 7), (7, 3)):
        for left in (-1, 0, 2, 9):
            for right in (-1, 0, 1, 9):
                mask = masks.from_flash_window((left, right), q_len, kv_len)
                assert masks.to_flash_window(mask, q_len, kv_len) == (left, right)
                # FlashAttention's documentation: query i attends to [i + s_k - s_q - left, i + s_k - s_q + right]
                for q, k in np.ndindex(q_len, kv_len):
                    at = q + kv_len - q_len
                    inside = (left == -1 or k >= at - left) and (right == -1 or k <= at + right)
                    assert mask.allowed(0, 0, q, k) == inside
    assert masks.from_flash_window((None, None), 3, 5) == masks.Full()
    assert masks.from_flash_window((-1, 0), 3, 5) == masks.Causal.end_aligned(3, 5)
    combined = masks.Causal() & masks.SlidingWindow(5, 3) & masks.SlidingWindow(2, None)
    assert masks.to_flash_window(combined, 4, 4) == (2, 0)


@pytest.mark.parametrize(
    "grid, window, shift",
    [((8, 8), (4, 4), (2, 2)), ((14, 21), (7, 7), (3, 3)), ((4, 9), (2, 3), (1, 2)), ((6, 6), (3, 3), 0)],
)
def test_swin_masks_come_back(grid, window, shift):
    mask = masks.ShiftedWindow(grid, window, shift)
    size = window[0] * window[1]
    array = masks.to_swin(mask)
    assert array.dtype == np.float32 and set(np.unique(array)) <= {0.0, -100.0}
    found = masks.from_swin(array)
    assert isinstance(found, masks.ShiftedWindow)
    np.testing.assert_array_equal(found.dense(size, size), mask.dense(size, size))
    same(masks.to_swin(found), array)
    images = 3 * len(array)  # the batch is a multiple of the windows
    np.testing.assert_array_equal(found.dense(size, size, images), mask.dense(size, size, images))


# the libraries themselves


def test_torch_multihead_attention():
    """need_weights tells which pairs it lets through."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(6, 3, batch_first=True).eval()
    query, key = torch.randn(2, 5, 6), torch.randn(2, 7, 6)
    for mask in (
        masks.Causal(2) & masks.KeyPadding([7, 4]),
        masks.Dense(RNG.random((2, 3, 5, 7)) < 0.6) | masks.SlidingWindow(0, 2),
        masks.KeyMask(RNG.random((2, 7)) < 0.8),
    ):
        dense = torch.as_tensor(mask.dense(5, 7, 2, 3))
        assert dense.any(-1).all()
        attn_mask, padding = masks.to_torch_mha(mask, 5, 7, 2, 3)
        given = {"attn_mask": attn_mask, "key_padding_mask": padding}
        given = {name: None if x is None else torch.as_tensor(x) for name, x in given.items()}
        weights = layer(query, key, key, **given, average_attn_weights=False)[1]
        assert torch.equal(weights > 0, dense)
        back = masks.from_torch_mha(*given.values(), num_heads=3)
        np.testing.assert_array_equal(back.dense(5, 7, 2, 3), dense)
        if not isinstance(mask, masks.KeyMask):
            floats = {n: x if x is None else torch.zeros(x.shape).masked_fill(x, -torch.inf) for n, x in given.items()}
            assert torch.equal(layer(query, key, key, **floats, average_attn_weights=False)[1] > 0, dense)
            assert masks.from_torch_mha(*floats.values(), num_heads=3) == back


def test_hugging_face():
    """A model's own 4-D mask: padding and causal together; and its 2-D mask gives the same logits as 4-D ones."""
    from transformers import LlamaConfig, LlamaModel
    from transformers.masking_utils import create_causal_mask

    config = LlamaConfig(
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=8,
        vocab_size=9,
        max_position_embeddings=8,
    )
    torch.manual_seed(0)
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    embeds = torch.randn(2, 5, 8)
    expected = masks.from_hf(padding) & masks.Causal()
    for implementation, dtype in (("eager", torch.float32), ("sdpa", torch.bool)):
        config._attn_implementation = implementation
        made = create_causal_mask(
            config=config, inputs_embeds=embeds, attention_mask=padding, past_key_values=None, position_ids=None
        )
        assert made.dtype == dtype and made.ndim == 4
        found = masks.from_hf(made)
        dense, wanted = found.dense(5, 5, 2)[:, 0], expected.dense(5, 5, 2)[:, 0]
        rows = wanted.any(-1)  # a wholly padded query is opened by some versions, so that no row is empty
        np.testing.assert_array_equal(dense[rows], wanted[rows])
    config._attn_implementation = "eager"
    model = LlamaModel(config).eval()
    kept = padding.bool()
    with torch.no_grad():
        outputs = [
            model(inputs_embeds=embeds, attention_mask=mask, position_ids=torch.arange(5)[None]).last_hidden_state[kept]
            for mask in (padding, torch.as_tensor(masks.to_hf(expected, 5, 5, 2)))
        ]
    torch.testing.assert_close(*outputs, rtol=0, atol=standards.value("same.compiled"))
    assert masks.to_hf(masks.from_hf(padding), 5, 5).tolist() == padding.tolist()


def test_flax():
    tokens = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    padding = nn.make_attention_mask(tokens > 0, tokens > 0)
    mask = masks.from_flax(nn.combine_masks(padding, nn.make_causal_mask(tokens)))
    lengths = np.array([3, 2])
    queries = masks.QueryMask(np.arange(4) < lengths[:, None])
    expected = masks.Causal() & masks.KeyPadding(lengths) & queries
    np.testing.assert_array_equal(mask.dense(4, 4, 2, 1), expected.dense(4, 4, 2, 1))
    same(
        masks.to_flax(expected, 4, 4, dtype=np.float32),
        np.asarray(nn.combine_masks(padding, nn.make_causal_mask(tokens))),
    )
    layer = nn.MultiHeadDotProductAttention(num_heads=2)
    x = jnp.asarray(RNG.standard_normal((2, 4, 6)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    _, state = layer.apply(
        variables, x, mask=jnp.asarray(masks.to_flax(expected, 4, 4)), sow_weights=True, mutable=["intermediates"]
    )
    weights = np.asarray(state["intermediates"]["attention_weights"][0])
    dense = expected.dense(4, 4, 2, 2)
    rows = dense.any(-1)
    np.testing.assert_array_equal((weights > 0)[rows], dense[rows])


def test_swin_of_transformers():
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    layer = SwinLayer(SwinConfig(window_size=4), 8, (8, 12), 2, shift_size=2)
    made = layer.get_attn_mask(8, 12, torch.float32, "cpu")
    found = masks.from_swin(made)
    expected = masks.ShiftedWindow((8, 12), 4, 2)
    np.testing.assert_array_equal(found.dense(16, 16), expected.dense(16, 16))
    same(masks.to_swin(expected), made.numpy())


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray, torch.as_tensor])
def test_data_stay_in_their_framework(asarray):
    drop = asarray(np.array([[False, True], [False, False]]))
    bias = asarray(np.array([[0.0, -np.inf], [0.0, 0.0]], np.float32))
    for mask in (masks.from_torch_mha(drop), masks.from_additive(bias), masks.from_hf(bias[None, None])):
        assert type(mask.keep) is type(drop)
        np.testing.assert_array_equal(mask.dense(2, 2)[0, 0], [[True, False], [True, True]])


# refusals

BIAS = np.zeros((1, 1, 2, 3), np.float32)
ODD = BIAS.copy()
ODD[0, 0, 1, 2], ODD[0, 0, 1, 1] = 0.5, np.nan


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: masks.from_additive(ODD),
            ValueError,
            r"bias\[0, 0, 1, 1\] is nan \(the first of 2 such values\): it must",
        ),
        (
            lambda: masks.from_additive(BIAS - 100),
            ValueError,
            r"bias\[0, 0, 0, 0\] is -100.0 .* 0 \(may attend\), -inf or",
        ),
        (
            lambda: masks.from_additive(BIAS - 100, -99.0),
            ValueError,
            r"is -100.0 .* 0 \(may attend\), -99.0, -inf or -3.4",
        ),
        (lambda: masks.from_additive(BIAS == 0), TypeError, "bias must be of dtype float, got .* bool"),
        (lambda: masks.from_additive(np.zeros((1,) * 5)), ValueError, r"broadcastable to \[B, H, L, S\], got shape"),
        (lambda: masks.to_additive(masks.Full(), np.int32, 2, 2), TypeError, "dtype must be float, got int32"),
        (lambda: masks.to_additive(masks.Full(), "odd", 2, 2), TypeError, "dtype must be a NumPy dtype, got 'odd'"),
        (
            lambda: masks.from_torch_mha(np.zeros((4, 2, 3), bool), np.array([[1, 0, 0]])),
            TypeError,
            r"num_heads must be given(.|\n)*key_padding_mask must be of dtype bool or float, got .* int64",
        ),
        (
            lambda: masks.from_torch_mha(np.zeros((4, 2, 3), bool), num_heads=3),
            ValueError,
            "multiple of num_heads 3 as its first axis, got 4",
        ),
        (lambda: masks.from_torch_mha(ODD[0, 0]), ValueError, r"attn_mask\[1, 1\] is nan"),
        (lambda: masks.from_hf([[1, 1, 2]]), ValueError, r"attention_mask\[0, 2\] is 2: it must be 0 or 1"),
        (lambda: masks.from_hf(BIAS.astype(int)), TypeError, "must be of dtype bool or float, got int64"),
        (
            lambda: masks.from_hf(BIAS[0]),
            ValueError,
            r"must be \[B, S\] of 1 and 0 or \[B, 1 or H, L, S\], got shape \[1",
        ),
        (lambda: masks.from_hf(ODD), ValueError, r"attention_mask\[0, 0, 1, 1\] is nan"),
        (lambda: masks.to_hf(masks.Full(), 2, 2, dtype=np.int64), TypeError, "dtype must be bool or float, got int64"),
        (lambda: masks.from_flax(ODD), ValueError, r"mask\[0, 0, 1, 1\] is nan \(the first of 2 .*must be 0 or 1"),
        (
            lambda: masks.from_flash_window((-2, 1.5), -1, 3),
            TypeError,
            r"left .* got -2(.|\n)*right .* 1.5(.|\n)*q_len",
        ),
        (lambda: masks.from_flash_window(3, 1, 3), TypeError, r"window must be \(left, right\), got 3"),
        (lambda: masks.to_flash_window(masks.PrefixLM(3), 4, 4), ValueError, r"not PrefixLM\(3\)"),
        (lambda: masks.to_flash_window(masks.Causal(), 3, 5), ValueError, "right would be -2: .* diagonal k - q = 2"),
        (lambda: masks.from_swin(np.full((1, 2, 2), -50.0)), ValueError, r"attn_mask\[0, 0, 0\] is -50.0"),
        (
            lambda: masks.from_swin(np.full((1, 2, 2), -100.0)),
            ValueError,
            "no grid, window and shift give this attn_mask",
        ),
        (lambda: masks.from_swin(np.zeros((1, 2, 3))), ValueError, r"must be \[windows, N, N\], got shape \[1, 2, 3\]"),
        (lambda: masks.to_swin(masks.Causal()), ValueError, "has no windows of its own"),
        (lambda: jax.jit(lambda x: masks.from_hf(x).keep)(BIAS), ValueError, "attention_mask is traced"),
    ],
)
def test_whatever_is_not_exact_is_refused_with_value_and_place(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_traced_mask_need_not_be_read_if_it_is_bool():
    keep = RNG.random((2, 1, 5, 7)) < 0.5

    def imported(keep):
        each = (
            masks.from_flax(keep),
            masks.from_hf(keep),
            masks.from_hf(keep[:, 0, 0]),
            masks.from_torch_mha(~keep[0, 0]),
        )
        return [maskattn_jax.lower.to_dense(mask, 5, 7, 2, 1) for mask in each]

    for found, expected in zip(jax.jit(imported)(keep), imported(keep), strict=True):
        same(found, expected)
    same(imported(keep)[0], keep)
    with pytest.raises(ValueError, match="mask is traced, and its values must be read: .*, or give mask as bool"):
        jax.jit(lambda keep: imported(keep)[0])(keep.astype(np.float32))
