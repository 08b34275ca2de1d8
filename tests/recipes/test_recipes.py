"""Each recipe against its source: transformers' own code where it is installed, else the source's rule written out."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest

import maskattn
from maskattn import masks, recipes
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, torch


def pairs(rule, q_len, kv_len):
    """bool [q_len, kv_len] of rule(q, k)."""
    return np.array([[bool(rule(q, k)) for k in range(kv_len)] for q in range(q_len)]).reshape(q_len, kv_len)


def check(mask, expected, **sizes):
    """`expected` is [L, S] or [B, L, S]."""
    found = mask.dense(*expected.shape[-2:], **sizes)[:, 0]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def transformers_mask(function, length, batch=1):
    """A mask function of transformers.masking_utils on all its index tensors: bool [batch, length, length]."""
    b, q, k = torch.arange(batch), torch.arange(length), torch.arange(length)
    found = function(b[:, None, None], torch.zeros((), dtype=torch.int64), q[:, None], k)
    return found.expand(batch, length, length).numpy()


@pytest.mark.parametrize("window", [1, 2, 5, 20])
def test_mistral_is_transformers_sliding_window(window):
    from transformers.masking_utils import sliding_window_causal_mask_function

    check(recipes.mistral(window), transformers_mask(sliding_window_causal_mask_function(window), 12))


def test_gemma2_alternates_as_its_configuration_says():
    from transformers import Gemma2Config
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    config = Gemma2Config(num_hidden_layers=5, sliding_window=3)
    rules = {
        "sliding_attention": sliding_window_causal_mask_function(config.sliding_window),
        "full_attention": causal_mask_function,
    }
    assert set(config.layer_types) == set(rules)
    for layer, kind in enumerate(config.layer_types):
        check(recipes.gemma2(layer, 3), transformers_mask(rules[kind], 9))


def test_llama4_chunks_as_its_configuration_says():
    from transformers import Llama4TextConfig
    from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function

    config = Llama4TextConfig(num_hidden_layers=9, attention_chunk_size=4)
    padding = torch.tensor([0, 3])
    assert set(config.layer_types) == {"chunked_attention", "full_attention"}
    for layer, kind in enumerate(config.layer_types):
        chunked = chunked_causal_mask_function(config.attention_chunk_size, padding)
        rule = chunked if kind == "chunked_attention" else causal_mask_function
        by = -padding.numpy()
        check(recipes.llama4(layer, 4).at(by, by), transformers_mask(rule, 11, batch=2), batch=2)


def test_bigbird_sees_what_transformers_block_sparse_code_sees():
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    blocks, size = 10, 2
    length = blocks * size
    config = BigBirdConfig(
        hidden_size=4, num_attention_heads=1, block_size=size, num_random_blocks=1, max_position_embeddings=length
    )
    torch.manual_seed(0)
    layer = BigBirdBlockSparseAttention(config, seed=0).eval()  # outside training its random blocks are all block 0
    ones = torch.ones(1, length)
    blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(ones, size)
    with torch.no_grad():
        _, weights = layer(
            torch.randn(1, length, 4),
            band_mask=band,
            from_mask=from_mask,
            to_mask=to_mask,
            from_blocked_mask=blocked,
            to_blocked_mask=blocked,
            output_attentions=True,
        )
    check(recipes.bigbird(length, size, random_blocks=0), np.asarray(weights[0, 0]) > 0)


def test_bigbird_adds_the_random_blocks():
    length, size = 15, 2  # the last block is short
    mask = recipes.bigbird(length, size, random_blocks=2, seed=3)
    chosen = masks.RandomBlocks(3, size, 2, 8).blocks.tolist()
    expected = pairs(
        lambda q, k: abs(q // 2 - k // 2) <= 1 or {q // 2, k // 2} & {0, 7} or k // 2 in chosen[q // 2], length, length
    )
    check(mask, expected)


@pytest.mark.parametrize("dilation", [1, 2])
def test_longformer(dilation):
    tokens = np.array([[1, 0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1]], bool)
    window = [step * dilation for step in range(-2, 3)]
    expected = np.stack([pairs(lambda q, k, row=row: k - q in window or row[q] or row[k], 9, 9) for row in tokens])
    check(recipes.longformer(4, tokens, dilation), expected)


def test_sparse_transformer_strided():
    def rule(i, j):
        return j in range(max(0, i - 4), i + 1) or (j <= i and (i - j) % 4 == 0)

    check(recipes.sparse_transformer_strided(4), pairs(rule, 13, 13))


@pytest.mark.parametrize("c", [1, 2, 4])
def test_sparse_transformer_fixed(c):
    mask = recipes.sparse_transformer_fixed(4, c, kv_len=14)
    check(mask, pairs(lambda i, j: j <= i and (i // 4 == j // 4 or j % 4 in range(4 - c, 4)), 14, 14))
    # the published code draws it in blocks: summary columns idx::stride, the local row of blocks, nothing above
    layout = np.zeros((14, 14), bool)
    for column in range(3, 3 - c, -1):
        layout[:, column::4] = True
    for row in range(14):
        layout[row, row // 4 * 4 : (row // 4 + 1) * 4] = True
        layout[row, row + 1 :] = False
    check(mask, layout)


@pytest.mark.parametrize("grid, window, shift", [((8, 8), 4, 2), ((6, 9), 3, 1), ((4, 4), 4, 2), ((3, 9), 4, 1)])
def test_swin_is_the_mask_of_its_published_block(grid, window, shift):
    mask = recipes.swin(grid, window, shift)
    if min(grid) <= window:
        window, shift = min(grid), 0
    regions = np.zeros(grid, int)
    edges = [slice(0, -window), slice(-window, -shift), slice(-shift, None)] if shift else [slice(None)]
    for number, (rows, columns) in enumerate(itertools.product(edges, edges)):
        regions[rows, columns] = number
    height, width = (side // window for side in grid)
    cut = regions.reshape(height, window, width, window).swapaxes(1, 2).reshape(height * width, -1)
    check(mask, cut[:, :, None] == cut[:, None, :])


@pytest.mark.parametrize(
    "length, kernel, dilation", [(9, 3, 1), (9, 3, 3), (11, 3, 2), (13, 5, 2), (10, 7, 1), (7, 7, 1)]
)
def test_natten_starts_its_windows_where_the_library_does(length, kernel, dilation):
    """The start of a window as NATTEN's first kernels computed it, for odd kernels."""
    side = kernel // 2

    def start(i):
        if dilation == 1:
            return max(i - side, 0) + (i + side >= length) * (length - i - side - 1)
        if i - side * dilation < 0:
            return i % dilation
        if i + side * dilation >= length:
            whole = length // dilation * dilation
            if i % dilation < length - whole:
                return length - (length - whole) + i % dilation - 2 * side * dilation
            return whole + i % dilation - kernel * dilation
        return i - side * dilation

    seen = [[start(i) + step * dilation for step in range(kernel)] for i in range(length)]
    check(recipes.natten(length, kernel, dilation), pairs(lambda q, k: k in seen[q], length, length))
    # two axes are the product of one axis each
    both = pairs(lambda q, k: k // length in seen[q // length] and k % length in seen[q % length], length**2, length**2)
    if length < 10:
        check(recipes.natten((length, length), kernel, dilation), both)


def test_prefix_lm():
    check(recipes.prefix_lm(3), pairs(lambda q, k: k < 3 or k <= q, 6, 6))
    check(recipes.prefix_lm([0, 6]), np.stack([np.tri(6, dtype=bool), np.ones((6, 6), bool)]))


def test_block_diffusion_is_the_mask_of_bd3lm():
    n, size = 6, 2

    def rule(q, k):
        q_clean, k_clean = q >= n, k >= n
        q_block, k_block = (i // size if i < n else (i - n) // size for i in (q, k))
        diagonal = q_block == k_block and q_clean == k_clean
        offset = q_block > k_block and k_clean and not q_clean
        return diagonal or offset or (q_block >= k_block and k_clean and q_clean)

    check(recipes.block_diffusion(n, size), pairs(rule, 2 * n, 2 * n))
    check(recipes.block_diffusion(4, 4), np.kron([[True, False], [False, True]], np.ones((4, 4), bool)))


def test_packed_documents_are_each_a_document_alone():
    sizes = [3, 0, 1, 4]
    expected, start = np.zeros((8, 8), bool), 0
    for size in sizes:
        expected[start : start + size, start : start + size] = np.tri(size)
        start += size
    check(recipes.packed_documents(sizes), expected)
    check(recipes.packed_documents(sizes, causal=False), expected | expected.T)
    ids = np.repeat(np.arange(4), sizes)[None]
    check(recipes.packed_documents(ids=ids), expected)
    padded = recipes.packed_documents(ids=np.concatenate([ids, [[-1, -1]]], axis=1))
    check(padded, np.pad(expected, (0, 2)))


def test_left_and_right_padding_are_each_others_mirror():
    lengths = np.array([0, 2, 5])
    left, right = recipes.left_padding(lengths, 5), recipes.right_padding(lengths)
    check(right, np.broadcast_to((np.arange(5) < lengths[:, None])[:, None], (3, 5, 5)))
    check(left, right.dense(5, 5)[:, 0, :, ::-1])
    # a causal row, padded on the left, is the row alone
    causal = (masks.Causal() & left).dense(5, 5)[:, 0]
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(causal[row, 5 - length :, 5 - length :], np.tri(length, dtype=bool))
        assert not causal[row, :, : 5 - length].any()


def test_mae_sees_what_its_encoder_keeps():
    removed = np.array([[1, 0, 0, 1, 0], [0, 1, 1, 1, 1]])  # MAE's own mask
    found = recipes.mae_visible(removed == 0).dense(5, 5)[:, 0]
    for row, gone in enumerate(removed):
        kept = np.flatnonzero(gone == 0)
        assert found[row][np.ix_(kept, kept)].all() and found[row].sum() == len(kept) ** 2


@pytest.mark.parametrize("prefix, branches", [(3, (2, 4, 1)), (0, (2, 3)), (4, ())])
def test_branches_of_a_shared_prefix_are_sequences_of_their_own(prefix, branches):
    total = prefix + sum(branches)
    found = recipes.shared_prefix(prefix, *branches).dense(total, total)[0, 0]
    start, seen = prefix, 0
    for size in branches:
        rows = [*range(prefix), *range(start, start + size)]
        np.testing.assert_array_equal(found[np.ix_(rows, rows)], np.tri(len(rows), dtype=bool))
        seen += size * prefix + size * (size + 1) // 2
        start += size
    assert found.sum() == prefix * (prefix + 1) // 2 + seen  # and nothing else


def test_a_speculative_tree_is_medusas_mask_after_the_cache():
    choices = sorted([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)], key=lambda path: (len(path), path))
    nodes = [(), *choices]
    medusa = np.eye(len(nodes), dtype=bool)
    medusa[:, 0] = True
    for i, path in enumerate(nodes):
        medusa[i, [nodes.index(path[:depth]) for depth in range(1, len(path))]] = True
    parents = [nodes.index(path[:-1]) if path else -1 for path in nodes]
    count = len(nodes)
    check(recipes.speculative_tree(3, parents), np.concatenate([np.ones((count, 3), bool), medusa], axis=1))
    # rows whose caches differ: the nodes of each follow its own cache, whatever the buffer holds behind them
    ragged = recipes.speculative_tree([3, 1], parents).dense(count, count + 3)[:, 0]
    np.testing.assert_array_equal(ragged[0, :, 3:], medusa)
    np.testing.assert_array_equal(ragged[1, :, 1 : count + 1], medusa)
    assert ragged[0, :, :3].all() and ragged[1, :, 0].all() and not ragged[1, :, count + 1 :].any()


def test_flamingo_attends_to_the_last_image_before():
    media = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]], bool)
    text_time = media.cumsum(axis=1)
    media_time = np.repeat(np.arange(1, 4), 2)
    check(recipes.flamingo(media, 2), text_time[:, :, None] == media_time)
    check(recipes.flamingo(media, 2, images=5), text_time[:, :, None] == np.repeat(np.arange(1, 6), 2))
    assert not recipes.flamingo(media, 2).dense(6, 6)[0, 0, 0].any()


FUNCTIONS = {name: getattr(recipes, name) for name in recipes.__all__ if inspect.isfunction(getattr(recipes, name))}


def test_every_recipe_is_documented_exported_and_has_an_example():
    assert maskattn.recipes is recipes and set(recipes.EXAMPLES) == set(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        assert "True = may attend" in function.__doc__ and ">>> " in function.__doc__, name
        mask, q_len, kv_len = recipes.EXAMPLES[name]
        dense = mask.dense(q_len, kv_len)
        assert dense.any() and not dense.all() and masks.draw(mask, q_len, kv_len).count("\n") == q_len - 1
        assert masks.from_json(mask.to_json()) == mask


def test_recipes_are_the_same_in_every_framework():
    sizes = {name: (len(e.mask.dense(e.q_len, e.kv_len)), 1, e.q_len, e.kv_len) for name, e in recipes.EXAMPLES.items()}
    chosen = {name: example.mask for name, example in recipes.EXAMPLES.items()}

    def lower(twin, found):
        return {name: twin.lower.allowed(mask, *sizes[name]) for name, mask in found.items()}

    in_jax = jax.jit(lambda found: lower(maskattn_jax, found))(chosen)
    in_torch = lower(maskattn_torch, chosen)
    for name, (mask, q_len, kv_len) in recipes.EXAMPLES.items():
        expected = mask.dense(q_len, kv_len)
        np.testing.assert_array_equal(np.broadcast_to(in_jax[name], expected.shape), expected, err_msg=name)
        np.testing.assert_array_equal(np.broadcast_to(in_torch[name], expected.shape), expected, err_msg=name)


@pytest.mark.parametrize("array", [jnp.asarray, torch.as_tensor], ids=["jax", "torch"])
def test_recipes_take_the_data_of_any_framework(array):
    lengths, keep = np.array([2, 4], np.int32), np.array([[True, False, True, True]])
    parents = np.array([-1, 0, 1], np.int32)
    for recipe, arguments in (
        (lambda n: recipes.left_padding(n, 4), (lengths,)),
        (recipes.right_padding, (lengths,)),
        (recipes.prefix_lm, (lengths,)),
        (recipes.mae_visible, (keep,)),
        (lambda tokens: recipes.longformer(2, tokens), (keep,)),
        (lambda images: recipes.flamingo(images, 1, images=4), (keep,)),
        (lambda ids: recipes.packed_documents(ids=ids), (np.array([[0, 0, 1, -1]]),)),
        (lambda tree, n: recipes.speculative_tree(n, tree), (parents, lengths)),
    ):
        mask = recipe(*arguments)
        q_len = 3 if len(arguments) == 2 else 4
        given = recipe(*map(array, arguments))
        np.testing.assert_array_equal(given.dense(q_len, 4), mask.dense(q_len, 4))


@pytest.mark.torch
@pytest.mark.parametrize(
    "make",
    [
        lambda: recipes.bigbird(12, block_size=2, random_blocks=1, seed=1),
        lambda: recipes.block_diffusion(6, 2),
        lambda: recipes.packed_documents([3, 5, 4]),
        lambda: recipes.shared_prefix(4, 3, 2, 3),
        lambda: masks.for_hf({"model_type": "big_bird", "block_size": 1, "num_random_blocks": 1}, layer=0, length=12),
    ],
    ids=["bigbird", "block_diffusion", "packed_documents", "shared_prefix", "for_hf"],
)
def test_what_numpy_works_out_may_be_made_while_pytorch_compiles(make):
    torch.compiler.reset()
    compiled = torch.compile(lambda: maskattn_torch.lower.to_dense(make(), 12, 12), fullgraph=True, backend="eager")
    np.testing.assert_array_equal(compiled(), make().dense(12, 12))


def test_lengths_may_be_traced():
    found = jax.jit(lambda n: maskattn_jax.lower.to_dense(recipes.left_padding(n, 4), 4, 4))(np.array([1, 4]))
    np.testing.assert_array_equal(found, recipes.left_padding([1, 4], 4).dense(4, 4))
    with pytest.raises(ValueError, match="images must be given where image_positions is traced"):
        jax.jit(lambda m: recipes.flamingo(m, 2))(np.ones((1, 2), bool))


BAD = [
    (lambda: recipes.longformer(3, [True]), ValueError, r"longformer: window must be even, got 3"),
    (lambda: recipes.longformer(2, [True], dilation=0), ValueError, r"dilation must be at least 1, got 0"),
    (lambda: recipes.bigbird(0), ValueError, r"bigbird: length must be at least 1, got 0"),
    (lambda: recipes.bigbird(128, 64, random_blocks=3), ValueError, r"blocks_per_row must be at most kv_blocks 2"),
    (lambda: recipes.sparse_transformer_strided(0), ValueError, r"stride must be at least 1, got 0"),
    (lambda: recipes.sparse_transformer_fixed(4, 5, 8), ValueError, r"c must be at most stride 4, got 5"),
    (lambda: recipes.sparse_transformer_fixed(4, 0, -1), ValueError, r"c must be at least 1.*\n.*kv_len must be at"),
    (lambda: recipes.swin((4, 4, 4), 2), ValueError, r"grid must be \(height, width\), got \(4, 4, 4\)"),
    (lambda: recipes.swin((4, 4), 2, 2), ValueError, r"shift must be less than window 2, got 2"),
    (lambda: recipes.swin((4, 5), 2, 1), ValueError, r"grid must be a multiple of window"),
    (lambda: recipes.natten((4, 4), 5), ValueError, r"kernel \* dilation must fit in grid"),
    (lambda: recipes.mistral(0), ValueError, r"mistral: window must be at least 1, got 0"),
    (lambda: recipes.mistral(None), TypeError, r"window must be an int, got None"),
    (lambda: recipes.gemma2(-1), ValueError, r"gemma2: layer must be at least 0, got -1"),
    (lambda: recipes.llama4(0, 0), ValueError, r"llama4: chunk must be at least 1, got 0"),
    (lambda: recipes.prefix_lm(-1), ValueError, r"prefix must be at least 0, got -1"),
    (lambda: recipes.packed_documents(), ValueError, r"either sizes or ids must be given, got neither"),
    (lambda: recipes.packed_documents([1], ids=[[0]]), ValueError, r"either sizes or ids must be given, got both"),
    (lambda: recipes.packed_documents([1], causal="no"), TypeError, r"causal must be a bool, got 'no'"),
    (lambda: recipes.left_padding([3, 6], 5), ValueError, r"lengths must be from 0 to kv_len 5, got 3 to 6"),
    (lambda: recipes.left_padding([0.5], 5), TypeError, r"lengths must be an int array, got dtype float64"),
    (lambda: recipes.right_padding([-1]), ValueError, r"lengths must not be negative, got -1"),
    (lambda: recipes.mae_visible([[1, 0]]), TypeError, r"keep must be a bool array, got dtype int64"),
    (lambda: recipes.block_diffusion(5, 2), ValueError, r"length must be a multiple of block 2, got 5"),
    (lambda: recipes.shared_prefix(2, -1), ValueError, r"branches\[0\] must be at least 0, got -1"),
    (lambda: recipes.speculative_tree(-1, [-1]), ValueError, r"prefix_len must be at least 0, got -1"),
    (lambda: recipes.speculative_tree([-1], [-1]), ValueError, r"prefix_len must not be negative, got -1"),
    (lambda: recipes.flamingo([[True, True]], 2, images=1), ValueError, r"images must be at least the 2 that a row"),
    (lambda: recipes.flamingo([[1, 0]], 0), ValueError, r"got dtype int64; .*\n.*tokens_per_image must be at"),
]  # fmt: skip


@pytest.mark.parametrize("make, error, message", BAD)
def test_recipes_name_what_is_wrong(make, error, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert caught.type is error or "problems" in str(caught.value)


def test_every_recipe_is_given_bad_input():
    assert {name for name in FUNCTIONS for make, _, _ in BAD if name in make.__code__.co_names} == set(FUNCTIONS)
