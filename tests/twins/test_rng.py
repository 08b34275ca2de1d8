"""maskattn_torch.rng and maskattn_jax.rng: the bits of maskattn.rng, which numerics/test_rng.py holds to jax.random."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from maskattn.numerics import rng
from maskattn_jax import rng as jax_rng
from maskattn_torch import rng as torch_rng

CAN_LINK = pytest.mark.skipif(" " in torch.__file__, reason="inductor cannot link PyTorch from a path with a space")
TWINS = {"jax": jax_rng, "torch": torch_rng}
KEY = rng.fold_in(rng.key(12345), 2**32 - 5)
FLOATS = ["float32", "float64", "float16", "bfloat16"]


def to(twin, array):
    if twin == "jax":
        return jnp.asarray(array)
    return torch.from_numpy(np.array(array))


def numpy(x):
    if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(x)


def same(ours, theirs):
    ours = numpy(ours)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert np.ascontiguousarray(ours).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("twin", TWINS)
def test_keys(twin):
    r, key = TWINS[twin], to(twin, KEY)
    same(r.key(2**31 - 1), rng.key(2**31 - 1))
    for n in (2, 5, (2, 3), 0):
        same(r.split(key, n), rng.split(KEY, n))
    numbers = np.array([[0, 1, 2**31], [2**32 - 1, 77, 3]], np.uint32)
    for given in (0, 2**32 - 1, numbers, to(twin, numbers)):
        same(r.fold_in(key, given), rng.fold_in(KEY, np.asarray(given)))


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("twin", TWINS)
def test_bits(twin, width):
    r, key = TWINS[twin], to(twin, KEY)
    with jax.enable_x64(width == 64):
        for shape, start in [((), 0), ((0,), 0), ((2, 66001), 0), (9, 77), (9, 2**32 - 3), (9, 2**40), (9, 2**63 - 9)]:
            same(r.bits(key, shape, width, start), rng.bits(KEY, shape, width, start))


def test_bits_across_a_piece_and_a_carry_in_torch():
    start = 2**32 - torch_rng._PIECE - 50
    same(torch_rng.bits(to("torch", KEY), 2 * torch_rng._PIECE, start=start), rng.bits(KEY, 1 << 18, start=start))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("twin", TWINS)
def test_uniform(twin, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    own = getattr(torch, name) if twin == "torch" else dtype
    key = to(twin, KEY)
    with jax.enable_x64(name == "float64"):
        for low, high in [(0.0, 1.0), (-1.3, 1.87), (0.1, 0.83), (-5.0, -4.2), (3.0, 3.0), (1e-30, 1e-3)]:
            same(TWINS[twin].uniform(key, 140_001, own, low, high), rng.uniform(KEY, 140_001, dtype, low, high))
        same(
            TWINS[twin].uniform(key, (3, 3), own, -1.3, 1.87, 2**35), rng.uniform(KEY, (3, 3), dtype, -1.3, 1.87, 2**35)
        )


@pytest.mark.parametrize("twin", TWINS)
def test_bernoulli(twin):
    r, key = TWINS[twin], to(twin, KEY)
    for p in (0.0, 1e-40, 1e-7, 0.1, 0.9, 1 - 2.0**-24, 1.0):
        same(r.bernoulli(key, p, (101, 57)), rng.bernoulli(KEY, p, (101, 57)))
    p = np.array([[0.1], [1e-40], [1.0], [0.93]], np.float32)
    same(r.bernoulli(key, to(twin, p)), rng.bernoulli(KEY, p))
    same(r.bernoulli(key, to(twin, p), (3, 4, 7), 99), rng.bernoulli(KEY, p, (3, 4, 7), 99))


@pytest.mark.parametrize("twin", TWINS)
def test_permutation(twin):
    r, key = TWINS[twin], to(twin, KEY)
    for size in (0, 1, 2, 1000):
        same(r.permutation(key, size), rng.permutation(KEY, size))
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for axis, independent in [(0, False), (-1, False), (1, True)]:
        same(r.permutation(key, to(twin, x), axis, independent), rng.permutation(KEY, x, axis, independent))


@pytest.mark.parametrize("twin", TWINS)
def test_what_stands_for_a_key(twin):
    r = TWINS[twin]
    for key in (7, np.int64(7), rng.key(7), to(twin, rng.key(7))):
        same(r.words(key), rng.key(7))
    same(jax_rng.words(jax.random.key(7)), rng.key(7))
    same(jax_rng.bits(jax.random.key(7), 5), np.asarray(jax.random.bits(jax.random.key(7), (5,))))
    for bad, error, says in [
        (-1, ValueError, r"key must be a seed in \[0, 2\*\*31\) or two uint32 words, got -1"),
        (2**31, ValueError, "got 2147483648"),
        (1.5, TypeError, "got 1.5"),
        (True, TypeError, "got True"),
        (to(twin, np.zeros(2, np.int32)), TypeError, r"got int32\[2\]"),
        (to(twin, np.zeros(3, np.uint32)), ValueError, r"got shape \(3,\)"),
        (jnp.zeros(2, "uint32") if twin == "torch" else torch.zeros(2).to(torch.uint32), TypeError, "key must be of"),
    ]:
        with pytest.raises(error, match=says):
            r.words(bad)


@pytest.mark.parametrize("twin", TWINS)
def test_bad_input_is_named(twin):
    r, key = TWINS[twin], TWINS[twin].key(0)
    halves = to(twin, np.full((2, 2), 0.5, np.float32))
    for call, error, says in [
        (lambda: r.key(2**31), ValueError, "seed: .*got 2147483648"),
        (lambda: r.bits(key, 3, 24), ValueError, "width: expected 8, 16, 32 or 64, got 24"),
        (lambda: r.bits(key, (2, -1)), ValueError, "shape: expected sizes of at least 0"),
        (lambda: r.bits(key, 3, start=-1), ValueError, "start: expected a place from 0"),
        (lambda: r.uniform(key, 3, minval=2.0), ValueError, "minval <= maxval, got 2.0 and 1.0"),
        (lambda: r.uniform(key, 3, "int32" if twin == "jax" else torch.int32), TypeError, "dtype: expected float32"),
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


def torch_draws(key):
    keys = torch_rng.split(torch_rng.fold_in(key, 3), 3)
    return (
        torch_rng.bits(keys[0], 5, 16),
        torch_rng.uniform(keys[1], (2, 3), minval=-1.3, maxval=1.87),
        torch_rng.bernoulli(keys[2], 0.3, 7),
        torch_rng.permutation(keys[0], 11),
    )


def jax_draws(key):
    keys = jax_rng.split(jax_rng.fold_in(key, 3), 3)
    return (
        jax_rng.bits(keys[0], 5, 16),
        jax_rng.uniform(keys[1], (2, 3), minval=-1.3, maxval=1.87),
        jax_rng.bernoulli(keys[2], 0.3, 7),
        jax_rng.permutation(keys[0], 11),
    )


# inductor imports torch.jit
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=CAN_LINK)])
def test_inside_a_compiled_function(backend):
    key = to("torch", KEY)
    compiled = torch.compile(torch_draws, fullgraph=True, backend=backend)(key)
    for ours, theirs in zip(compiled, torch_draws(key), strict=True):
        same(ours, numpy(theirs))


def test_under_vmap_each_key_draws_its_own():
    keys = rng.split(KEY, 2)
    ours = torch.func.vmap(torch_draws)(to("torch", keys))
    theirs = jax.vmap(jax_draws)(to("jax", keys))
    for i, key in enumerate(keys):
        for one, two, alone in zip(ours, theirs, jax_draws(to("jax", key)), strict=True):
            same(one[i], np.asarray(alone))
            same(two[i], np.asarray(alone))


def test_the_operators_keep_torchs_rules():
    key = to("torch", KEY)
    torch.library.opcheck(torch_rng._hash, (key, torch.arange(3)))
    torch.library.opcheck(torch_rng._bits, (key, 5, 7, 16))
    torch.library.opcheck(torch_rng._uniform, (key, 5, 7, torch.float32, -1.0, 2.5))
