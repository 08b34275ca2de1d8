"""The same mask in NumPy, JAX and PyTorch, in each of the ways a framework can run it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from maskattn import biases, masks, recipes
from tests.frameworks import _pytree, jax, jnp, maskattn_jax, maskattn_torch, torch
from tests.masks.pattern_definitions import Draws, Sizes
from tests.twin import load

pytestmark = pytest.mark.hurried

SIZES = (2, 3, 6, 6)


def some_masks():
    rng = np.random.default_rng(0)
    keep, slots = rng.random((2, 1, 6, 6)) < 0.5, masks.KeyMask(rng.random((2, 6)) < 0.5)
    segments = masks.Segments(rng.integers(-1, 3, (2, 6)), rng.integers(-1, 3, (1, 6)))
    yield from (masks.Full(), masks.Empty(), masks.Dense(keep), masks.Dense(keep[0, 0, :, :1]))
    yield from (masks.Causal(1), masks.SlidingWindow(2, 1), masks.SlidingWindow(None, None))
    yield from (masks.PrefixLM(3), masks.PrefixLM([1, 4]), masks.KeyPadding([3, 6]), masks.KeyPadding([3]), slots)
    yield from (masks.QueryMask(rng.random((1, 6)) < 0.5), segments, masks.WindowPartition((2, 3), (1, 3), (0, 2)))
    yield masks.ShiftedWindow((2, 6), (2, 3), (0, 1))
    yield masks.Causal().at(2, np.array([1, 3]))
    yield (slots | masks.Dense(keep)).at(np.array(1), -2)
    yield (masks.Causal() & slots).with_positions(rng.integers(0, 9, (2, 6)), rng.integers(0, 9, (1, 6)))
    yield (masks.Dense(keep) & masks.Causal(1)) | ~(masks.KeyPadding([2, 5]) | segments)


CLASSES = {name: value for name in masks.__all__ if isinstance(value := getattr(masks, name), type)}
MASKS = list(some_masks())
for name, cls in CLASSES.items():
    if not any(f"{name}(" in repr(mask) for mask in MASKS):
        MASKS += cls.examples(Sizes(2, 3, 6, 6), Draws(0))
every_mask = pytest.mark.parametrize("mask", MASKS, ids=repr)


def test_every_mask_is_tried():
    found = {name for mask in MASKS for name in masks.__all__ if f"{name}(" in repr(mask)}
    assert set(CLASSES) - found - {"Mask"} == {"And", "Or", "Not", "At", "Positioned", "Stored"}


@every_mask
def test_allowed_is_dense_with_unread_axes_of_size_1(twin, mask):
    found = twin.lower.allowed(mask, *SIZES)
    expected = mask.dense(6, 6, 2, 3)
    if mask == masks.Full():
        assert found is None and expected.all()
        return
    reads = [size if name in mask.depends else 1 for name, size in zip("bhqk", SIZES, strict=True)]
    assert list(found.shape) == reads and str(found.dtype).endswith("bool")
    np.testing.assert_array_equal(np.broadcast_to(np.asarray(found), SIZES), expected)
    np.testing.assert_array_equal(np.asarray(twin.lower.to_dense(mask, 6, 6, 2, 3)), expected)


@every_mask
def test_jax_jit_with_the_mask_as_an_argument(mask):
    found = jax.jit(lambda m: maskattn_jax.lower.to_dense(m, 6, 6, 2, 3))(mask)
    np.testing.assert_array_equal(found, mask.dense(6, 6, 2, 3))


@every_mask
def test_torch_compile_with_the_mask_as_an_argument(mask):
    torch._dynamo.reset()
    bound = MASKS.index(mask) % 2  # NumPy data are allowed too
    compiled = torch.compile(
        lambda m: maskattn_torch.lower.to_dense(m, 6, 6, 2, 3), fullgraph=True, backend="eager", dynamic=False
    )
    found = compiled(maskattn_torch.lower.bind(mask) if bound else mask)
    np.testing.assert_array_equal(found, mask.dense(6, 6, 2, 3))


def test_masks_can_be_built_and_combined_while_compiling():
    torch._dynamo.reset()

    def build(lengths, offset):
        padding = masks.KeyPadding(lengths)
        mask = (masks.Causal().at(offset) & padding & padding) | masks.Not(padding)
        return maskattn_torch.lower.to_dense(mask, 3, 4)

    lengths, offset = torch.tensor([1, 3]), torch.tensor([0, 1])
    compiled = torch.compile(build, fullgraph=True, backend="eager", dynamic=False)
    np.testing.assert_array_equal(compiled(lengths, offset), build(lengths, offset))


def test_vmap_over_data(twin):
    lengths = np.array([[3, 1], [6, 2], [0, 5]])
    keep = masks.QueryMask(np.eye(6, dtype=bool)[:1])

    def run(row):
        return twin.lower.to_dense((masks.KeyPadding(row) & masks.Causal(2)) | keep, 6, 6)

    expected = np.stack([((masks.KeyPadding(row) & masks.Causal(2)) | keep).dense(6, 6) for row in lengths])
    np.testing.assert_array_equal(twin.vmap(run)(twin.array(lengths)), expected)
    # the mask itself as the mapped argument: its data have one axis more than its constructor would take
    rows = [twin.lower.bind(masks.KeyPadding(row) & masks.Causal(2)) for row in lengths]
    stacked = twin.tree_map(lambda *leaves: twin.numpy.stack(leaves), *rows)
    found = twin.vmap(lambda m: twin.lower.to_dense(m | keep, 6, 6))(stacked)
    np.testing.assert_array_equal(found, expected)


@every_mask
def test_flex_attention_can_call_allowed(mask):
    from torch.nn.attention.flex_attention import create_mask

    bound = maskattn_torch.lower.bind(mask)
    found = create_mask(lambda b, h, q, k: bound.allowed(b, h, q, k), *SIZES, device="cpu")
    np.testing.assert_array_equal(found, mask.dense(6, 6, 2, 3))


@every_mask
def test_pytrees_have_the_data_as_leaves(mask):
    leaves, structure = jax.tree.flatten(mask)
    torch_leaves, torch_structure = _pytree.tree_flatten(mask)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    assert bool(leaves) == ("[" in repr(mask) or bool(mask.data_fields()))
    assert [id(leaf) for leaf in torch_leaves] == [id(leaf) for leaf in leaves]
    assert jax.tree.unflatten(structure, leaves) == mask == _pytree.tree_unflatten(torch_leaves, torch_structure)
    assert hash(structure) == hash(jax.tree.structure(mask)) and structure == jax.tree.structure(mask)
    # unflattening never validates, and what it makes flattens again, whatever the leaves are
    for leaf in (None, 0, object(), "x"):
        odd = jax.tree.unflatten(structure, [leaf] * len(leaves))
        assert jax.tree.structure(odd, is_leaf=lambda x: x is None) == structure
    assert len(jax.tree_util.tree_flatten_with_path(mask)[0]) == len(leaves)


def test_masks_defined_later_are_pytrees_too():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Late(masks.Mask):
        inner: masks.Mask = masks.part()
        step: int
        shift: object = masks.data()

        def allowed(self, b, h, q, k):
            return ((q + k + self.shift) % self.step == 0) & self.inner.allowed(b, h, q, k)

    mask = Late(masks.KeyPadding([2, 3]), 2, np.array(1))
    assert len(jax.tree.leaves(mask)) == len(_pytree.tree_leaves(mask)) == 2
    found = jax.jit(lambda m: maskattn_jax.lower.to_dense(m, 3, 3))(mask)
    np.testing.assert_array_equal(found, mask.dense(3, 3))
    np.testing.assert_array_equal(maskattn_torch.lower.to_dense(mask, 3, 3), mask.dense(3, 3))


def test_tiles_in_every_framework():
    rng = np.random.default_rng(1)
    lo, extra = rng.integers(0, 6, (2, 20)), rng.integers(0, 4, (2, 20))
    bounds = (np.arange(20) % 2, np.arange(20) % 3, lo[0], lo[0] + extra[0], lo[1], lo[1] + extra[1])
    expected = [mask.tile(*bounds) for mask in MASKS]
    in_jax = jax.jit(lambda ms, *tiles: [mask.tile(*tiles) for mask in ms])(MASKS, *bounds)
    in_torch = [maskattn_torch.lower.bind(mask).tile(*map(torch.as_tensor, bounds)) for mask in MASKS]
    for mask, numpy_pair, jax_pair, torch_pair in zip(MASKS, expected, in_jax, in_torch, strict=True):
        for a, b, c in zip(numpy_pair, jax_pair, torch_pair, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=repr(mask))
            np.testing.assert_array_equal(a, c, err_msg=repr(mask))


def test_jax_integers_follow_x64():
    mask = masks.KeyPadding([2, 3])
    assert maskattn_jax.lower.bind(mask).lengths.dtype == jnp.int32
    wide = masks.Segments([[2**40, 2**40 + 2**32, 7]])
    with pytest.raises(ValueError, match="must fit in int32 while x64 is off, got 7 to 1103806595072"):
        maskattn_jax.lower.bind(wide)
    with jax.enable_x64(True):
        assert maskattn_jax.lower.bind(mask).lengths.dtype == jnp.int64
        np.testing.assert_array_equal(maskattn_jax.lower.to_dense(wide, 3, 3), wide.dense(3, 3))


def test_framework_arrays_are_data_like_any_other(twin):
    mask = masks.KeyPadding(twin.array(np.array([1, 3], np.int32))) & masks.Causal()
    same = masks.KeyPadding(np.array([1, 3], np.int32)) & masks.Causal()
    assert mask == same and mask.dense(3, 3).tolist() == same.dense(3, 3).tolist()
    with pytest.raises(TypeError, match="KeyPadding cannot be hashed|holds data in lengths"):
        hash(mask)
    for bad, message in (
        (np.array([1.5]), "int array, got dtype float"),
        (np.array([[1]]), r"shape \[B\], got \[1, 1\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            masks.KeyPadding(twin.array(bad))


@pytest.mark.jax
@pytest.mark.torch
def test_a_framework_refuses_the_arrays_of_the_other(twin):
    other = load("torch" if twin.name == "jax" else "jax")
    with pytest.raises(TypeError, match="data must be of NumPy or"):
        other.lower.bind(masks.KeyPadding(twin.array(np.array([1, 3], np.int32))) & masks.Causal())


@pytest.mark.parametrize(
    "mask, message",
    [
        (masks.KeyPadding([1, 7]), r"KeyPadding.* expects lengths up to kv_len 6, got 7"),
        (
            masks.KeyPadding([7]),
            r"up to kv_len 6, got 7; PrefixLM\(7\)\.at\(-2\*\*30\) has the first 7 at every length",
        ),
        (masks.KeyMask(np.ones((2, 5), bool)), r"KeyMask.* expects kv_len 5, got 6"),
        (masks.Dense(np.ones((4, 1, 1), bool)), r"Dense.* expects heads 4, got 3"),
        (masks.ShiftedWindow((4, 9), (2, 3), 1), r"expects a batch that is a multiple of 6, got 2"),
        (masks.KeyPadding([1]).at(np.arange(3)) | masks.PrefixLM([1, 2, 3]), r"PrefixLM.* expects batch 3, got 2"),
    ],
)
def test_sizes_that_conflict_are_named(twin, mask, message):
    lower = twin.lower
    for call in (
        lambda: lower.allowed(mask, *SIZES),
        lambda: lower.allowed(lower.bind(mask), *SIZES) if "int64" not in message else lower.to_dense(mask, 6, 6, 2, 3),
        lambda: lower.to_dense(mask, 6, 6, 2, 3),
        lambda: lower.bias(biases.Additive(mask), *SIZES),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_lengths_in_the_frameworks_own_arrays_are_checked_where_they_can_be_read(twin):
    with pytest.raises(ValueError, match="lengths up to kv_len 6, got 7"):
        twin.lower.allowed(masks.KeyPadding(twin.array(np.array([1, 7]))), *SIZES)
    with pytest.raises(ValueError, match="not negative, got -2"):
        twin.lower.allowed(masks.KeyPadding(twin.array(np.array([1, -2]))), *SIZES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_to_additive(twin, dtype):
    mask = masks.Causal() & masks.KeyPadding([2, 3])
    kind = getattr(twin.numpy, dtype)
    found = twin.lower.to_additive(mask, kind, 3, 3)
    least = float(twin.numpy.finfo(kind).min)
    assert found.dtype == kind and found.shape == (2, 1, 3, 3)
    wide = twin.to_numpy(found).astype(np.float32)
    np.testing.assert_array_equal(wide, np.where(mask.dense(3, 3), np.float32(0), np.float32(least)))
    with pytest.raises(TypeError, match="dtype must be a float dtype"):
        twin.lower.to_additive(mask, twin.numpy.int32, 3, 3)


def test_no_mask_and_no_bias_are_none(twin):
    assert twin.lower.allowed(None, *SIZES) is None and twin.lower.bias(None, *SIZES) is None


NARROW = ["uint8", "uint16", "uint32", "uint64", "int8", "int16"]


def moved(array):
    """Masks of positions, offsets, lengths and ids that `array` makes; some leave what 8 bits hold."""
    q, k, by = array([[0, 3, 100, 101, 127, 2]]), array([[0, 100, 1, 5, 126, 99]]), array([100, 3])
    yield from (mask.with_positions(q, k) for mask in (masks.SlidingWindow(1), masks.Causal(100), masks.Causal(300)))
    yield (masks.SlidingWindow(5, 200) & ~masks.Causal(-3) | masks.BlockCausal(3)).with_positions(q, k)
    yield masks.SlidingWindow(2, 1).at(by, by)
    yield masks.Causal(-90).at(array(100), 3) & masks.PrefixLM(by)
    yield masks.PrefixLM(array([1, 4])).at(200) | masks.KeyPadding(array([3, 6]))
    yield masks.Segments(array([[0, 3, 100, 100, 127, 2]]), k)
    yield recipes.left_padding(array([3, 2]), 6)
    yield masks.Causal() & recipes.speculative_tree(array([2, 1]), [-1, 0, 0, 1]).at(-2)


# Blockwise reads positions itself; to the others a mask is what `to_dense` made.
@pytest.mark.parametrize("kernel", ["blockwise", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.slow_in("jax"))], ids=["x32", "x64"])
@pytest.mark.parametrize("dtype", NARROW)
def test_positions_of_every_integer_dtype(twin, dtype, x64, kernel):
    with twin.x64(x64):
        draw = np.random.default_rng(0).standard_normal
        q, key, value = (twin.array(draw((2, 6, 1, 4)).astype(np.float32)) for _ in range(3))
        expected = list(moved(np.asarray))
        of_numpy, of_twin = (
            list(moved(lambda x, one=one: one(np.asarray(x, dtype)))) for one in (np.asarray, twin.array)
        )
        for wide, narrow, mask in zip(expected, of_numpy, of_twin, strict=True):
            dense = wide.dense(6, 6, 2, 1)
            assert np.array_equal(narrow.dense(6, 6, 2, 1), dense), mask
            assert np.array_equal(mask.dense(6, 6, 2, 1), dense), mask
            assert np.array_equal(twin.to_numpy(twin.lower.to_dense(mask, 6, 6, 2, 1)), dense), mask
            found, right = (twin.attention(q, key, value, one, kernel=kernel, blocks=(2, 2)) for one in (mask, wide))
            assert np.array_equal(twin.to_numpy(found), twin.to_numpy(right)), mask


@pytest.mark.parametrize("dtype", NARROW)
def test_biases_read_offsets_of_every_integer_dtype(twin, dtype):
    table = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    for make in (
        lambda offset: biases.ALiBi(2, offset=offset),
        lambda offset: biases.T5Buckets(table, max_distance=200, offset=offset),
    ):
        for given in ([100, 3], 127):
            bias = make(twin.array(np.asarray(given, dtype)))
            expected = twin.lower.bias(make(np.asarray(given)), 2, 2, 6, 40)
            assert np.array_equal(twin.to_numpy(twin.lower.bias(bias, 2, 2, 6, 40)), twin.to_numpy(expected))


def test_traced_positions_of_an_unsigned_dtype(twin):
    p = np.array([[2, 0, 1, 5, 3, 4]])
    run = twin.compile(lambda p: twin.lower.to_dense(masks.SlidingWindow(1).with_positions(p, p), 6, 6))
    expected = masks.SlidingWindow(1).with_positions(p, p).dense(6, 6)
    assert np.array_equal(twin.to_numpy(run(twin.array(p.astype(np.uint8)))), expected)


def test_positions_that_int32_cannot_hold_are_refused():
    p = jnp.asarray([[2**31, 2**32 - 1]], jnp.uint32)
    with pytest.raises(ValueError, match="Positioned: q_pos must lie within 2.*30"):
        maskattn_jax.lower.to_dense(masks.Causal().with_positions(p, p), 2, 2)


def test_cumulative_lengths_that_are_traced():
    make = partial(masks.Segments.from_cu_seqlens, q_len=7)
    ends = np.array([[0, 2, 2, 5], [0, 1, 4, 7]], np.int32)
    right = [make(each).q_ids[0] for each in ends]
    compiled = torch.compile(lambda ends: make(ends).q_ids[0], fullgraph=True, backend="eager")
    for each, ids in zip(ends, right, strict=True):
        assert np.array_equal(jax.jit(lambda ends: make(ends).q_ids[0])(each), ids)
        assert np.array_equal(compiled(torch.tensor(each)), ids)
    assert np.array_equal(jax.vmap(lambda ends: make(ends).q_ids[0])(ends), right)
    assert np.array_equal(torch.func.vmap(lambda ends: make(ends).q_ids[0])(torch.tensor(ends)), right)
    with pytest.raises(ValueError, match="cu_seqlens_q is traced: q_len must be given"):
        jax.jit(lambda ends: masks.Segments.from_cu_seqlens(ends).q_ids)(ends[0])
    for map_of, sizes in ((jax.vmap, ends), (jax.jit, ends[0]), (torch.func.vmap, torch.tensor(ends))):
        with pytest.raises(ValueError, match="q_sizes is traced, but decides shapes"):
            map_of(lambda sizes: masks.Segments.from_sizes(sizes).q_ids)(sizes)
