"""Each of the patterns against its definition: dense, outside the data, tiles, combinations, special cases."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import masks, standards
from tests.frameworks import jax, jnp, maskattn_jax, torch
from tests.masks.pattern_definitions import NAMES, Draws, Sizes, brute, neighbours, pair, patterns

#: The answers of these are exact, not only sound: every tile, and the tiles whose summary says all there is.
EXACT = ("BlockCausal", "Chunked", "Dilated", "Strided", "Global", "BlockSparse", "PerHead")


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_dense_is_the_definition(name, data):
    sizes, mask = data.draw(patterns((name,)))
    dense = mask.dense(sizes.q_len, sizes.kv_len, sizes.batch, sizes.heads)
    assert type(mask).__name__ == name and dense.dtype == bool
    np.testing.assert_array_equal(dense, brute(mask, *sizes.scores))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_positions_may_be_negative_or_beyond_the_data(name, data):
    sizes, mask = data.draw(patterns((name,)))
    moved = mask.at(q_offset=data.draw(st.integers(-9, 9)), k_offset=data.draw(st.integers(-9, 9)))
    q, k = np.arange(-3, sizes.q_len + 3)[:, None], np.arange(-3, sizes.kv_len + 3)
    found = moved.allowed(sizes.batch - 1, sizes.heads - 1, q, k)
    expected = [[pair(moved, sizes.batch - 1, sizes.heads - 1, i, j) for j in k.tolist()] for i in q[:, 0].tolist()]
    assert found.tolist() == expected
    # PyTorch's // and % on negative numbers
    bound = moved.map_data(torch.as_tensor)
    assert bound.allowed(sizes.batch - 1, sizes.heads - 1, torch.as_tensor(q), torch.as_tensor(k)).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_combinations_are_the_definition(data):
    sizes, first = data.draw(patterns())
    draws = Draws(data.draw(st.integers(0, 2**32 - 1)))
    found = getattr(masks, data.draw(st.sampled_from(NAMES))).examples(sizes, draws)
    mask = (first | ~masks.Causal(1)) & ~(found[-1] if found else masks.Chunked(3)).at(1, -2)
    dense = mask.dense(sizes.q_len, sizes.kv_len, sizes.batch, sizes.heads)
    np.testing.assert_array_equal(dense, brute(mask, *sizes.scores))


def tiles_of(rng, sizes, count=16):
    b, h = rng.integers(0, sizes.batch, count), rng.integers(0, sizes.heads, count)
    q_lo, k_lo = rng.integers(-3, sizes.q_len + 2, count), rng.integers(-3, sizes.kv_len + 2, count)
    return b, h, q_lo, q_lo + rng.integers(0, 5, count), k_lo, k_lo + rng.integers(0, 5, count)


def truth(mask, tiles):
    found = []
    for b, h, q_lo, q_hi, k_lo, k_hi in zip(*(t.tolist() for t in tiles), strict=True):
        inside = mask.allowed(b, h, np.arange(q_lo, q_hi + 1)[:, None], np.arange(k_lo, k_hi + 1))
        found.append((bool(inside.any()), bool(inside.all())))
    return np.array(found).T


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_tiles_are_sound_and_where_claimed_exact(name, data, seed):
    sizes, mask = data.draw(patterns((name,)))
    tiles = tiles_of(np.random.default_rng(seed), sizes)
    some, every = mask.tile(*tiles)
    any_allowed, all_allowed = truth(mask, tiles)
    assert some.dtype == every.dtype == bool and some.shape == every.shape == (16,)
    assert (some >= any_allowed).all(), "called empty, but something in it is allowed"
    assert (every <= all_allowed).all(), "called full, but something in it is not allowed"
    if name in EXACT:
        np.testing.assert_array_equal(some, any_allowed)
    if name in (*EXACT, "Tree"):
        np.testing.assert_array_equal(every, all_allowed)
    _, _, q_lo, q_hi, k_lo, k_hi = tiles
    if name == "RandomBlocks":
        short = q_hi // mask.block_size - q_lo // mask.block_size <= 1
    elif name in ("Neighborhood", "Axial") and (len(mask.grid) == 1 or 1 in mask.grid):
        short = np.array(np.max(getattr(mask, "dilation", 1)) == 1)  # one row of the grid is all there is
    else:
        short = (q_lo == q_hi) & (k_lo == k_hi) & (name != "Neighborhood")
    np.testing.assert_array_equal(some[np.broadcast_to(short, 16)], any_allowed[np.broadcast_to(short, 16)])
    np.testing.assert_array_equal(every[np.broadcast_to(short, 16)], all_allowed[np.broadcast_to(short, 16)])


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_tiles_of_combinations_are_sound(data, seed):
    sizes, first = data.draw(patterns())
    mask = (first & ~masks.Strided(2)) | (first.at(-2, 1) & masks.Chunked(3))
    tiles = tiles_of(np.random.default_rng(seed), sizes)
    some, every = mask.tile(*tiles)
    any_allowed, all_allowed = truth(mask, tiles)
    assert (some >= any_allowed).all() and (every <= all_allowed).all()


def test_tiles_skip_what_a_kernel_should_skip():
    """A neighborhood of 3 x 3 in a grid of 16 x 16, and a tree of long branches: most tiles are known to be empty."""
    start = np.arange(0, 256, 16)
    tiles = (0, 0, start[:, None], start[:, None] + 15, start, start + 15)
    some, _ = masks.Neighborhood((16, 16), 3).tile(*tiles)
    assert some.sum() == sum(abs(i - j) <= 1 or (i, j) in ((0, 2), (15, 13)) for i in range(16) for j in range(16))
    branches = [node - 1 if node % 64 else -1 for node in range(256)]
    some, every = masks.Tree(branches).tile(*tiles)
    blocks = np.arange(16) // 4
    np.testing.assert_array_equal(some, (blocks[:, None] == blocks) & (np.arange(16) <= np.arange(16)[:, None]))
    np.testing.assert_array_equal(every, (blocks[:, None] == blocks) & (np.arange(16) < np.arange(16)[:, None]))


def test_every_query_of_a_neighborhood_sees_the_whole_kernel():
    for n, kernel, dilation in ((7, 3, 2), (9, 4, 2), (8, 2, 4), (6, 6, 1), (10, 3, 3), (11, 5, 1)):
        dense = masks.Neighborhood(n, kernel, dilation).dense(n, n)[0, 0]
        assert (dense.sum(1) == kernel).all()
        assert [np.flatnonzero(row).tolist() for row in dense] == [neighbours(i, n, kernel, dilation) for i in range(n)]
    cube = masks.Neighborhood((3, 4, 5), (3, 2, 3), (1, 2, 1)).dense(60, 60)[0, 0]
    assert (cube.sum(1) == 18).all()


def test_random_blocks_are_distinct_and_depend_on_the_seed_alone():
    one, same, other = (masks.RandomBlocks(seed, 4, 3, 9) for seed in (5, 5, 6))
    assert one == same != other and repr(one) == "RandomBlocks(5, 4, 3, 9)"
    assert all(len(set(row)) == 3 and 0 <= min(row) and max(row) < 9 for row in one.blocks.tolist())
    assert masks.RandomBlocks(5, 2, 9, 9).dense(18, 17).all()
    assert not masks.RandomBlocks(5, 2, 0, 9).dense(18, 17).any()
    # every block is drawn about equally often: 2000 rows, 3 of 9 each
    counts = np.bincount(np.concatenate([masks.RandomBlocks(s, 1, 3, 9).blocks.ravel() for s in range(223)]))
    assert abs(counts / 2007 - 1 / 3).max() < standards.value("draws.share")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 24), st.integers(0, 2**32 - 1))
def test_trees_are_numbered_alike_by_walking_and_by_arithmetic(nodes, seed):
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(nodes), (2, 1)), axis=1)
    parents = np.full((2, nodes), -1)
    for row in range(2):
        for place in range(1, nodes):
            before = int(rng.integers(-1, place))
            parents[row, order[row, place]] = order[row, before] if before >= 0 else -1
    walked, counted = masks.Tree(parents), masks.Tree(torch.as_tensor(parents))
    assert isinstance(counted.first, torch.Tensor) and walked == counted
    np.testing.assert_array_equal(np.sort(walked.first, axis=1), np.tile(np.arange(nodes), (2, 1)))


def test_trees_of_traced_parents():
    parents = np.array([[-1, 0, 0, 1, 3, 2], [5, 5, 1, 1, -1, 4]])
    expected = masks.Tree(parents).dense(6, 6, 2)
    in_jax = jax.jit(lambda p: maskattn_jax.lower.to_dense(masks.Tree(p), 6, 6))
    np.testing.assert_array_equal(in_jax(parents), expected)
    single = [masks.Tree(row) for row in parents]
    mapped = jax.jit(jax.vmap(lambda p: maskattn_jax.lower.to_dense(masks.Tree(p), 6, 6)))(parents)
    np.testing.assert_array_equal(mapped, np.stack([tree.dense(6, 6) for tree in single]))
    in_torch = torch.func.vmap(lambda p: masks.Tree(p).allowed(0, 0, torch.arange(6)[:, None], torch.arange(6)))
    np.testing.assert_array_equal(in_torch(torch.as_tensor(parents)), expected[:, 0])


def test_a_tree_without_nodes_allows_nothing():
    for empty in (np.zeros(0, int), jnp.zeros((1, 0), int), torch.zeros((2, 0), dtype=torch.int64)):
        tree = masks.Tree(empty)
        assert not tree.allowed(0, 0, 0, 0) and tree.dense(0, 0).size == 0
        assert not any(tree.tile(0, 0, 0, 1, 0, 1))


def test_a_mask_for_each_head():
    parts = [masks.Causal(), masks.KeyPadding([2, 4]), masks.Causal()]
    mask = masks.PerHead(parts)
    dense = mask.dense(4, 4)
    assert dense.shape == (2, 3, 4, 4) and mask.sizes() == {"batch": 2, "heads": 3}
    for head, part in enumerate(parts):
        np.testing.assert_array_equal(dense[:, head], part.dense(4, 4, 2)[:, 0])
    moved = mask.with_positions([[3, 2]], [[0, 1, 2, 3]])
    np.testing.assert_array_equal(moved.dense(2, 4, 2)[:, 0], dense[:, 0, [3, 2]])
    np.testing.assert_array_equal(moved.dense(2, 4, 2)[:, 1], dense[:, 1, :2])
    assert not mask.allowed(0, np.array([-1, 3]), 3, 0).any()
    assert "Causal() forbids" in mask.why(0, 0, 1, 2) and "KeyPadding" not in mask.why(0, 0, 1, 2).splitlines()[-1]


SMALL = Sizes(2, 3, 6, 6)


@pytest.mark.parametrize(
    "mask, sizes, message",
    [
        (masks.Global(np.ones(5, bool)), (5, 9), r"Global.* expects kv_len 5, got 9"),
        (masks.Global(np.ones((2, 5), bool)), (5, 5, 3), r"expects batch 2, got 3"),
        (masks.RandomBlocks(0, 2, 1, 4), (8, 9), r"RandomBlocks\(0, 2, 1, 4\) expects kv_len of 4 blocks of 2, got 9"),
        (masks.RandomBlocks(0, 2, 1, 4), (9, 8), r"expects q_len up to 8, got 9"),
        (masks.Neighborhood((3, 3), 3), (9, 8), r"Neighborhood.* expects kv_len 9, got 8"),
        (masks.Axial((3, 3), 0), (8, 9), r"Axial.* expects q_len 9, got 8"),
        (masks.BlockSparse(np.ones((2, 3), bool), 4), (9, 12), r"expects q_len of 2 blocks of 4, got 9"),
        (masks.BlockSparse(np.ones((2, 2, 3), bool), 4), (8, 12, 1, 3), r"expects heads 2, got 3"),
        (masks.Tree([-1, 0]), (2, 3), r"Tree.* expects kv_len 2, got 3"),
        (masks.PerHead([masks.Causal(), masks.Full()]), (2, 3, 1, 3), r"PerHead.* expects heads 2, got 3"),
        (masks.PerHead([masks.KeyPadding([1, 9])]), (2, 3), r"lengths up to kv_len 3, got 9"),
        (masks.PerHead([masks.Dense(np.ones((2, 1, 1), bool))]), (2, 3), r"heads is 2 in a part but 1 masks are given"),
    ],
)
def test_sizes_that_conflict_are_named(mask, sizes, message):
    with pytest.raises(ValueError, match=message):
        mask.dense(*sizes)


def test_every_mask_of_the_library_has_examples():
    plain = {"Mask", "And", "Or", "Not", "At", "Positioned", "Stored"}
    for name in masks.__all__:
        cls = getattr(masks, name)
        if isinstance(cls, type) and name not in plain:
            found = cls.examples(SMALL, Draws(0))
            assert found and all(type(mask) is cls for mask in found), name
            assert [m == n for m, n in zip(found, cls.examples(SMALL, Draws(0)), strict=True)] == [True] * len(found)
            for shape in (
                Sizes(1, 1, 1, 1),
                Sizes(1, 2, 1, 7),
                Sizes(3, 1, 5, 2),
                Sizes(2, 1, 13, 13),
                Sizes(4, 2, 24, 24),
            ):
                for mask in cls.examples(shape, Draws(1)):
                    assert mask.dense(shape.q_len, shape.kv_len, shape.batch, shape.heads).shape == shape.scores
    assert masks.Mask.examples(SMALL, Draws(0)) == []


def test_the_error_of_padding_names_a_mask_of_the_first_keys_at_every_length():
    (fault,) = masks.KeyPadding([9]).conflicts({"batch": 1, "heads": 1, "q_len": 4, "kv_len": 4})
    advised = re.search(r"PrefixLM\(9\)\S*", fault)[0]
    first = eval(advised, {"PrefixLM": masks.PrefixLM})
    for length in (4, 20):
        assert (first.dense(20, length)[0, 0] == (np.arange(length) < 9)).all()
