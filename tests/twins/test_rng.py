"""maskattn_torch.rng and maskattn_jax.rng: the bits of maskattn.rng, which numerics/test_rng.py holds to jax.random."""

import ml_dtypes
import numpy as np
import pytest

from maskattn.numerics import rng
from tests.frameworks import CAN_LINK, jax, jax_rng, jnp, torch, torch_rng
from tests.twin import load, same

KEY = rng.fold_in(rng.key(12345), 2**32 - 5)
FLOATS = ["float32", "float64", "float16", "bfloat16"]


def test_keys(twin):
    r, key = twin.rng, twin.array(KEY)
    same(r.key(2**31 - 1), rng.key(2**31 - 1))
    for n in (2, 5, (2, 3), 0):
        same(r.split(key, n), rng.split(KEY, n))
    numbers = np.array([[0, 1, 2**31], [2**32 - 1, 77, 3]], np.uint32)
    for given in (0, 2**32 - 1, numbers, twin.array(numbers)):
        same(r.fold_in(key, given), rng.fold_in(KEY, np.asarray(given)))


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_bits(twin, width):
    r, key = twin.rng, twin.array(KEY)
    with twin.x64(width == 64):
        for shape, start in [((), 0), ((0,), 0), ((2, 66001), 0), (9, 77), (9, 2**32 - 3), (9, 2**40), (9, 2**63 - 9)]:
            same(r.bits(key, shape, width, start), rng.bits(KEY, shape, width, start))


def test_bits_across_a_piece_and_a_carry_in_torch():
    start = 2**32 - torch_rng._PIECE - 50
    key = load("torch").array(KEY)
    same(torch_rng.bits(key, 2 * torch_rng._PIECE, start=start), rng.bits(KEY, 1 << 18, start=start))


@pytest.mark.parametrize("name", FLOATS)
def test_uniform(twin, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    own = getattr(twin.numpy, name) if twin.name == "torch" else dtype
    key = twin.array(KEY)
    with twin.x64(name == "float64"):
        for low, high in [(0.0, 1.0), (-1.3, 1.87), (0.1, 0.83), (-5.0, -4.2), (3.0, 3.0), (1e-30, 1e-3)]:
            same(twin.rng.uniform(key, 140_001, own, low, high), rng.uniform(KEY, 140_001, dtype, low, high))
        same(twin.rng.uniform(key, (3, 3), own, -1.3, 1.87, 2**35), rng.uniform(KEY, (3, 3), dtype, -1.3, 1.87, 2**35))


def test_bernoulli(twin):
    r, key = twin.rng, twin.array(KEY)
    for p in (0.0, 1e-40, 1e-7, 0.1, 0.9, 1 - 2.0**-24, 1.0):
        same(r.bernoulli(key, p, (101, 57)), rng.bernoulli(KEY, p, (101, 57)))
    p = np.array([[0.1], [1e-40], [1.0], [0.93]], np.float32)
    same(r.bernoulli(key, twin.array(p)), rng.bernoulli(KEY, p))
    same(r.bernoulli(key, twin.array(p), (3, 4, 7), 99), rng.bernoulli(KEY, p, (3, 4, 7), 99))


def test_permutation(twin):
    r, key = twin.rng, twin.array(KEY)
    for size in (0, 1, 2, 1000):
        same(r.permutation(key, size), rng.permutation(KEY, size))
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for axis, independent in [(0, False), (-1, False), (1, True)]:
        same(r.permutation(key, twin.array(x), axis, independent), rng.permutation(KEY, x, axis, independent))


def test_what_stands_for_a_key(twin):
    r = twin.rng
    for key in (7, np.int64(7), rng.key(7), twin.array(rng.key(7))):
        same(r.words(key), rng.key(7))
    for bad, error, says in [
        (-1, ValueError, r"key must be a seed in \[0, 2\*\*31\) or two uint32 words, got -1"),
        (2**31, ValueError, "got 2147483648"),
        (1.5, TypeError, "got 1.5"),
        (True, TypeError, "got True"),
        (twin.array(np.zeros(2, np.int32)), TypeError, r"got int32\[2\]"),
        (twin.array(np.zeros(3, np.uint32)), ValueError, r"got shape \(3,\)"),
    ]:
        with pytest.raises(error, match=says):
            r.words(bad)


def test_a_seed_may_be_an_array_that_is_not_read(twin):
    same(twin.rng.words(twin.numpy.asarray(7)), rng.key(7))
    same(twin.compile(twin.rng.words)(twin.numpy.asarray(7)), rng.key(7))
    same(twin.vmap(twin.rng.words)(twin.array(np.arange(3))), np.stack([rng.key(i) for i in range(3)]))
    same(twin.rng.words(np.array(7)), rng.key(7))


def test_four_words_stand_for_two(twin):
    words = np.array([1, 2**31, 3, 2**32 - 1], np.uint32)
    two = np.asarray(jax.extend.random.threefry_2x32(jnp.asarray(words[:2]), jnp.asarray(words[2:])))
    for given in (words, twin.array(words)):
        same(twin.rng.words(given), two)
        for ours, theirs in zip(draws(twin.rng, given), draws(rng, two), strict=True):
            same(ours, theirs)
    same(twin.compile(twin.rng.words)(twin.array(words)), two)
    same(twin.vmap(twin.rng.words)(twin.array(np.stack([words, words]))), np.stack([two, two]))
    for ours, theirs in zip(draws(rng, words), draws(rng, two), strict=True):
        same(ours, theirs)


def test_keys_of_rbg_are_keys():
    for name in ("rbg", "unsafe_rbg"):
        key = jax.random.fold_in(jax.random.key(7, impl=name), 3)
        same(jax_rng.bits(key, 5), rng.bits(np.asarray(jax.random.key_data(key)), 5))
        same(jax.jit(jax_rng.words)(key), jax_rng.words(jax.random.key_data(key)))
        # the words of a seed are twice those of threefry's
        same(jax_rng.words(jax.random.key(7, impl=name)), rng.fold_in(rng.key(7), 7))


def test_jaxs_own_key_is_a_key():
    same(jax_rng.words(jax.random.key(7)), rng.key(7))
    same(jax_rng.bits(jax.random.key(7), 5), np.asarray(jax.random.bits(jax.random.key(7), (5,))))


def test_the_arrays_of_the_other_framework_are_no_key():
    for r, key in ((torch_rng, jnp.zeros(2, "uint32")), (jax_rng, torch.zeros(2).to(torch.uint32))):
        with pytest.raises(TypeError, match="key must be of"):
            r.words(key)


def test_bad_input_is_named(twin):
    r, key = twin.rng, twin.rng.key(0)
    halves = twin.array(np.full((2, 2), 0.5, np.float32))
    for call, error, says in [
        (lambda: r.key(2**31), ValueError, "seed: .*got 2147483648"),
        (lambda: r.bits(key, 3, 24), ValueError, "width: expected 8, 16, 32 or 64, got 24"),
        (lambda: r.bits(key, (2, -1)), ValueError, "shape: expected sizes of at least 0"),
        (lambda: r.bits(key, 3, start=-1), ValueError, "start: expected a place from 0"),
        (lambda: r.uniform(key, 3, minval=2.0), ValueError, "minval <= maxval, got 2.0 and 1.0"),
        (lambda: r.uniform(key, 3, twin.numpy.int32), TypeError, "dtype: expected float32"),
        (lambda: r.bernoulli(key, 1.1, 3), ValueError, "p: expected probabilities"),
        (lambda: r.bernoulli(key, halves, 4), ValueError, r"p: .*broadcastable to shape \(4,\)"),
        (lambda: r.bernoulli(key, key, 2), TypeError, "p: expected a probability .*uint32"),
        (lambda: r.fold_in(key, -1), ValueError, "data: expected integers"),
        (lambda: r.fold_in(key, 0.5), TypeError, "data: .*float64"),
        (lambda: r.fold_in(key, halves), TypeError, "data: .*float32"),
        (lambda: r.permutation(key, halves, 2), ValueError, "axis: expected one of 2 axes, got 2"),
        (lambda: r.permutation(key, -1), ValueError, "expected sizes of at least 0"),
    ]:
        with pytest.raises(error, match=says):
            call()


def test_64_bits_need_x64_in_jax():
    with pytest.raises(ValueError, match="width: 64 needs jax_enable_x64"):
        jax_rng.bits(0, 3, 64)
    with pytest.raises(ValueError, match="dtype: float64 needs jax_enable_x64"):
        jax_rng.uniform(0, 3, np.float64)


def draws(r, key):
    keys = r.split(r.fold_in(key, 3), 3)
    return (
        r.bits(keys[0], 5, 16),
        r.uniform(keys[1], (2, 3), minval=-1.3, maxval=1.87),
        r.bernoulli(keys[2], 0.3, 7),
        r.permutation(keys[0], 11),
    )


# inductor imports torch.jit
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=CAN_LINK)])
def test_inside_a_compiled_function(backend):
    key = load("torch").array(KEY)
    compiled = torch.compile(lambda key: draws(torch_rng, key), fullgraph=True, backend=backend)(key)
    for ours, theirs in zip(compiled, draws(rng, KEY), strict=True):
        same(ours, theirs)


def test_under_vmap_each_key_draws_its_own(twin):
    keys = rng.split(KEY, 2)
    found = twin.vmap(lambda key: draws(twin.rng, key))(twin.array(keys))
    for i, key in enumerate(keys):
        for ours, alone in zip(found, draws(rng, key), strict=True):
            same(ours[i], alone)


def test_the_operators_keep_torchs_rules():
    key = load("torch").array(KEY)
    torch.library.opcheck(torch_rng._folded.operator, (torch.cat([key, key]),))
    torch.library.opcheck(torch_rng._hash.operator, (key, torch.arange(3)))
    torch.library.opcheck(torch_rng._bits.operator, (key, 5, 7, 16))
    torch.library.opcheck(torch_rng._uniform.operator, (key, 5, 7, torch.float32, -1.0, 2.5))
