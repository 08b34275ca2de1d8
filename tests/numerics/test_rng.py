"""maskattn.numerics.rng against jax.random, bit for bit, and against committed values, which need NumPy alone."""

import hashlib
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn.numerics import rng
from tests.frameworks import jax
from tests.twin import same

SEEDS = [0, 1, 7, 123456789, 2**31 - 1]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (3, 5, 7), (2, 33001)]
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
BOUNDS = [(0.0, 1.0), (-1.0, 1.0), (-1.3, 1.87), (0.1, 0.83), (-1e-3, 777.7), (-5.0, -4.2), (3.0, 3.0), (1e-30, 1e-3)]


def words(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_key_split_and_fold_in_are_those_of_jax(seed, x64):
    with jax.enable_x64(x64):
        theirs = jax.random.key(seed)
        ours = rng.key(seed)
        same(ours, words(theirs))
        same(ours, jax.random.PRNGKey(seed))
        same(rng.split(ours), words(jax.random.split(theirs)))
        same(rng.split(ours, 5), words(jax.random.split(theirs, 5)))
        same(rng.split(ours, (2, 3)), words(jax.random.split(theirs, (2, 3))))
        same(rng.fold_in(rng.split(ours)[1], 9), words(jax.random.fold_in(jax.random.split(theirs)[1], 9)))
        for data in (0, 1, 2**31 - 1):
            same(rng.fold_in(ours, data), words(jax.random.fold_in(theirs, data)))


def test_fold_in_takes_every_uint32_and_arrays_of_them():
    key = jax.random.key(5)
    data = np.array([[0, 1, 2**31], [2**32 - 1, 77, 3]], np.uint32)
    theirs = jax.vmap(jax.vmap(lambda d: jax.random.key_data(jax.random.fold_in(key, d))))(data)
    same(rng.fold_in(words(key), data), theirs)
    same(rng.fold_in(words(key), 2**32 - 1), theirs[1, 0])


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_those_of_jax(shape, width):
    with jax.enable_x64(width == 64):
        theirs = jax.random.bits(jax.random.key(11), shape, f"uint{width}")
        same(rng.bits(rng.key(11), shape, width), theirs)


def test_a_million_and_more_bits_are_those_of_jax():
    shape = (3, 1048583)  # odd, and no multiple of the piece the work is cut into
    same(rng.bits(rng.key(2), shape), jax.random.bits(jax.random.key(2), shape))


@pytest.mark.parametrize(
    ("dtype", "x64"), [(dtype, x64) for dtype in FLOATS for x64 in (False, True) if x64 or dtype is not np.float64]
)
def test_uniform_is_that_of_jax(dtype, x64):
    key = jax.random.key(3)
    with jax.enable_x64(x64):
        for shape in [(), (0,), (3, 5, 7), (2, 33001)]:
            same(rng.uniform(words(key), shape, dtype), jax.random.uniform(key, shape, dtype))
        for low, high in BOUNDS:
            theirs = jax.random.uniform(key, (2**18 + 1,), dtype, low, high)
            ours = rng.uniform(words(key), 2**18 + 1, dtype, low, high)
            same(
                _rounded_once(words(key), low, high) if dtype is np.float16 and _computes_in_float16() else ours, theirs
            )


def _computes_in_float16() -> bool:
    """Whether XLA rounds a multiply-add of float16 once, as it does on processors that compute in it."""
    x = jax.numpy.float16(1 + 2**-10)
    return bool(jax.jit(lambda x, y: x * x + y)(x, -x) != jax.numpy.float16(x * x) - x)


def _rounded_once(key, low, high):
    """The numbers that such a processor gives."""
    low, high = np.float16(low), np.float16(high)
    wide = rng.uniform(key, 2**18 + 1, np.float16).astype(np.float64) * np.float64(high - low) + np.float64(low)
    return np.maximum(low, wide.astype(np.float16))


@pytest.mark.parametrize("x64", [False, True])
def test_bernoulli_is_that_of_jax_given_a_float32(x64):
    key = jax.random.key(17)
    with jax.enable_x64(x64):
        for p in (0.0, 1e-40, 2.0**-126, 1e-7, 0.1, 0.5, 0.9, 1 - 2.0**-24, 1.0):
            theirs = jax.random.bernoulli(key, np.float32(p), (1001, 257))
            same(rng.bernoulli(words(key), p, (1001, 257)), theirs)
        p = np.linspace(0, 1, 7, dtype=np.float32)
        same(rng.bernoulli(words(key), p), jax.random.bernoulli(key, p))
        same(rng.bernoulli(words(key), p, (3, 7)), jax.random.bernoulli(key, p, (3, 7)))
        column = p[:, None]
        same(rng.bernoulli(words(key), column, (5, 7, 11)), jax.random.bernoulli(key, column, (5, 7, 11)))


def test_a_raw_jax_key_is_a_key():
    same(rng.bits(jax.random.PRNGKey(4), 9), jax.random.bits(jax.random.key(4), (9,)))


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000, 10007])
def test_permutation_is_that_of_jax(size):
    same(rng.permutation(rng.key(6), size), jax.random.permutation(jax.random.key(6), size))


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_permutations_of_arrays_are_those_of_jax(axis, independent):
    x = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    theirs = jax.random.permutation(jax.random.key(6), x, axis, independent)
    same(rng.permutation(rng.key(6), x, axis, independent), theirs)


def test_uniform_and_bernoulli_start_anywhere():
    key = rng.key(9)
    for dtype in FLOATS:
        whole = rng.uniform(key, 70_001, dtype, -1.3, 1.87)
        same(rng.uniform(key, 101, dtype, -1.3, 1.87, start=69_900), whole[69_900:])
    whole = rng.bernoulli(key, 0.3, 70_001)
    same(rng.bernoulli(key, 0.3, (101,), start=69_900), whole[69_900:])


@settings(deadline=None, max_examples=50)
@given(
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    start=st.integers(0, 2**40) | st.integers(2**63 - 400, 2**63 - 200),
    length=st.integers(0, 200),
    width=st.sampled_from([8, 16, 32, 64]),
)
def test_a_range_is_that_range_of_the_whole(key, start, length, width):
    """Against a scalar transcription of the generator, far beyond what could be drawn as a whole."""
    drawn = rng.bits(np.array(key, np.uint32), length, width, start)
    for i, value in enumerate(drawn.tolist()):
        x0, x1 = scalar_threefry(key, (start + i) >> 32, (start + i) & 0xFFFFFFFF)
        assert value == ((x0 << 32 | x1) if width == 64 else (x0 ^ x1) & (2**width - 1))


def scalar_threefry(key, x0, x1):
    """Threefry-2x32-20 as its authors write it, in Python integers."""
    m = 2**32 - 1
    ks = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x0, x1 = (x0 + ks[0]) & m, (x1 + ks[1]) & m
    for r in range(20):
        d = (13, 15, 26, 6, 17, 29, 16, 24)[r % 8]
        x0 = (x0 + x1) & m
        x1 = ((x1 << d | x1 >> (32 - d)) & m) ^ x0
        if r % 4 == 3:
            n = r // 4 + 1
            x0, x1 = (x0 + ks[n % 3]) & m, (x1 + ks[(n + 1) % 3] + n) & m
    return x0, x1


def test_ranges_of_an_array_are_the_array_across_pieces():
    whole = rng.bits(rng.key(8), 100_003)
    cuts = [0, 1, 2, 32_767, 32_768, 70_000, 70_000, 100_003]
    parts = [rng.bits(rng.key(8), b - a, start=a) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_the_generator_matches_the_test_vectors_of_its_authors():
    # kat_vectors of the Random123 distribution, threefry2x32 with 20 rounds.
    for key, counter, expected in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]:
        x0, x1 = (np.array([word], np.uint32) for word in counter)
        rng._threefry2x32(*key, x0, x1)
        assert (int(x0[0]), int(x1[0])) == expected


GOLDEN = {
    "split": "93a28cb538e1a28b",
    "fold_in": "71fbb0d2e627ae76",
    "bits8": "3b33eef54086e38c",
    "bits16": "70a027660f0faca4",
    "bits32": "eeacd3994646cdc2",
    "bits64": "06e28ef9cc145e34",
    "uniform float32": "13adabbebe81aeed",
    "uniform float32 -0.3 to 0.9": "4c379dec60a1be3e",
    "uniform float64": "f1e9a94ace879dd1",
    "uniform float64 -0.3 to 0.9": "7e14b202f5cd89bd",
    "uniform float16": "341ece67910bf3f8",
    "uniform float16 -0.3 to 0.9": "89e5f7310db850bb",
    "uniform bfloat16": "c0e3a3150b476334",
    "uniform bfloat16 -0.3 to 0.9": "daa30725dd9d8788",
    "bernoulli": "87724a7d83a4330a",
}


def golden_draws():
    key = rng.key(2024)
    yield "split", rng.split(key, (3, 1001))
    yield "fold_in", rng.fold_in(key, np.arange(10_000))
    for width in (8, 16, 32, 64):
        yield f"bits{width}", rng.bits(key, (7, 9973), width)
    for dtype in FLOATS:
        name = np.dtype(dtype).name
        yield f"uniform {name}", rng.uniform(key, (7, 9973), dtype)
        yield f"uniform {name} -0.3 to 0.9", rng.uniform(key, (7, 9973), dtype, -0.3, 0.9)
    yield "bernoulli", rng.bernoulli(key, 0.9, (7, 9973))


def test_draws_are_the_committed_ones():
    assert {name: hashlib.sha256(draw.tobytes()).hexdigest()[:16] for name, draw in golden_draws()} == GOLDEN


def test_bernoulli_has_the_probability_asked_for():
    n = 2**20
    for p in (0.1, 0.5, 0.93):
        assert abs(rng.bernoulli(rng.key(1), p, n).sum() - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_results_are_the_callers_own():
    a = rng.bits(rng.key(0), 4)
    a[:] = 0
    assert rng.bits(rng.key(0), 4).any()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: rng.key(-1), ValueError, r"seed: expected an integer in \[0, 2\*\*31\), got -1"),
        (lambda: rng.key(2**31), ValueError, "seed: .*got 2147483648"),
        (lambda: rng.key(1.0), TypeError, "seed: expected an integer, got 1.0"),
        (lambda: rng.key(True), TypeError, "seed: expected an integer, got True"),
        (lambda: rng.bits(np.zeros(2, np.int64)), TypeError, r"key: expected uint32 \[2\], got dtype int64"),
        (lambda: rng.bits(np.zeros(3, np.uint32)), ValueError, r"key: expected uint32 \[2\], got shape \(3,\)"),
        (lambda: rng.bits(rng.split(rng.key(0))), ValueError, r"key: expected uint32 \[2\], got shape \(2, 2\)"),
        (lambda: rng.bits(7), TypeError, "key: expected uint32"),
        (lambda: rng.bits(jax.random.key(0)), TypeError, "key: expected two uint32 words.*key_data"),
        (lambda: rng.bits(rng.key(0), (2, -1)), ValueError, r"shape: expected sizes of at least 0, got \(2, -1\)"),
        (lambda: rng.bits(rng.key(0), (2.5,)), TypeError, "shape: expected an integer, got 2.5"),
        (lambda: rng.bits(rng.key(0), 3, 24), ValueError, "width: expected 8, 16, 32 or 64, got 24"),
        (lambda: rng.split(rng.key(0), -1), ValueError, "n: expected sizes of at least 0"),
        (lambda: rng.bits(rng.key(0), 3, start=-1), ValueError, "start: expected a place from 0 .*got -1"),
        (lambda: rng.bits(rng.key(0), 3, start=2**63 - 2), ValueError, "start: .*below 2"),
        (lambda: rng.uniform(rng.key(0), 3, start=0.5), TypeError, "start: expected an integer, got 0.5"),
        (lambda: rng.permutation(rng.key(0), -1), ValueError, "x: expected sizes of at least 0"),
        (lambda: rng.permutation(rng.key(0), np.zeros((2, 3)), 2), ValueError, "axis: expected one of 2 axes, got 2"),
        (lambda: rng.bernoulli_limit("half"), TypeError, "p: expected a probability"),
        (lambda: rng.bernoulli_limit(1.5), ValueError, "p: expected probabilities"),
        (lambda: rng.fold_in(rng.key(0), -1), ValueError, r"data: expected integers in \[0, 2\*\*32\), got -1"),
        (lambda: rng.fold_in(rng.key(0), 2**32), ValueError, "data: .*4294967296"),
        (lambda: rng.fold_in(rng.key(0), 0.5), TypeError, "data: .*dtype float64"),
        (lambda: rng.uniform(rng.key(0), 3, np.int32), TypeError, "dtype: expected float32.*got int32"),
        (lambda: rng.uniform(rng.key(0), 3, minval=2.0), ValueError, "minval <= maxval, got 2.0 and 1.0"),
        (lambda: rng.uniform(rng.key(0), 3, maxval=math.nan), ValueError, "minval, maxval: expected finite"),
        (lambda: rng.uniform(rng.key(0), 3, np.float32, 0, 1e300), ValueError, "maxval - minval finite in float32"),
        (lambda: rng.uniform(rng.key(0), 3, np.float16, -6e4, 6e4), ValueError, "maxval - minval finite in float16"),
        (lambda: rng.bernoulli(rng.key(0), 1.1), ValueError, r"p: expected probabilities in \[0, 1\], got 1.1"),
        (lambda: rng.bernoulli(rng.key(0), math.nan), ValueError, "p: expected probabilities"),
        (lambda: rng.bernoulli(rng.key(0), "half"), TypeError, "p: expected a probability"),
        (lambda: rng.bernoulli(rng.key(0), np.zeros(3), (4,)), ValueError, r"p: .*broadcastable to shape \(4,\)"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_many_keys_at_once_draw_what_each_draws():
    keys = rng.fold_in(rng.key(5), np.arange(7))
    together = rng.bits_each(keys, 3)
    assert np.array_equal(together, np.stack([rng.bits(key, (3,)) for key in keys]))
