"""Every scheme gives the same result in NumPy, JAX under jit and PyTorch, row by row; and what is wrong is named."""

from functools import partial

import numpy as np
import pytest

from maskattn import corruption
from maskattn.numerics import rng
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, torch

ROWS, LENGTH = 6, 40
DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(200, 3000, (ROWS, LENGTH))
SPECIAL = DRAW.random((ROWS, LENGTH)) < 0.1
SPECIAL[2] = True
WORDS = np.cumsum(DRAW.random((ROWS, LENGTH)) < 0.6, axis=1)
LENGTHS = np.array([40, 0, 1, 2, 17, 39])
BERT = partial(corruption.MLM, 103, 3000)

# name -> scheme, arrays of one row each, sizes
CASES = {
    "mlm": (BERT(), (TOKENS, SPECIAL), False),
    "mlm without special": (BERT(rate=0.3), (TOKENS,), False),
    "mlm exact": (BERT(exact_count=True), (TOKENS, SPECIAL), False),
    "mlm words": (BERT(whole_words=True), (TOKENS, SPECIAL, WORDS), False),
    "mlm exact words": (BERT(whole_words=True, exact_count=True), (TOKENS, SPECIAL, WORDS), False),
    "t5": (corruption.T5Spans(2999), (TOKENS,), False),
    "t5 lengths": (corruption.T5Spans(2999, rate=0.5, mean_span=1.5, eos_id=1), (TOKENS, LENGTHS), False),
    "mae": (corruption.MAE(0.7, prefix=1), (), (ROWS, LENGTH)),
    "simmim": (corruption.SimMIM((64, 96), unit=16, patch=8), (), (ROWS,)),
    "beit": (corruption.BEiT((9, 12), 40, min_block=6), (), (ROWS,)),
    "beit small blocks": (corruption.BEiT(8, 30, min_block=2, max_block=6, min_aspect=0.5, max_aspect=1), (), (ROWS,)),
    "ijepa": (corruption.IJEPA(), (), (ROWS,)),
    "ijepa tight": (corruption.IJEPA((6, 7), target_scale=(0.5, 0.6), context_scale=(0.6, 0.7)), (), (ROWS,)),
}
EACH = pytest.mark.parametrize("name", CASES)


def in_numpy(name, key):
    scheme, arrays, sizes = CASES[name]
    return scheme.apply(key, *arrays, *(sizes or ()))


def assert_same(one, other):
    assert type(one) is type(other)
    for field, x, y in zip(one._fields, one, other, strict=True):
        y = np.asarray(y)
        assert x.dtype == (y.dtype if x.dtype == bool else np.int64) and y.dtype in (bool, np.int32, np.int64)
        np.testing.assert_array_equal(x, y, err_msg=field)


@EACH
def test_jax_under_jit_gives_numpys_result(name):
    scheme, arrays, sizes = CASES[name]
    jitted = jax.jit(lambda key, *arrays: maskattn_jax.corrupt(scheme, key, *arrays, *(sizes or ())))
    for seed in (0, 12345):
        drawn = jitted(jax.random.key(seed), *map(jnp.asarray, arrays))
        assert all(x.dtype in (bool, jnp.int32) for x in drawn)
        assert_same(in_numpy(name, seed), drawn)
    assert jitted._cache_size() == 1


@EACH
def test_pytorch_gives_numpys_result(name):
    scheme, arrays, sizes = CASES[name]
    for seed in (0, 12345, 2**31 - 1):
        drawn = maskattn_torch.corrupt(scheme, seed, *map(torch.as_tensor, arrays), *(sizes or ()))
        assert all(x.dtype in (torch.bool, torch.int64) for x in drawn)
        assert_same(in_numpy(name, seed), drawn)


@EACH
def test_rows_do_not_depend_on_the_rows_behind_them(name):
    scheme, arrays, sizes = CASES[name]
    if name == "t5 lengths":
        arrays = arrays[0], np.maximum(arrays[1], 2)  # rows 0 and 1 are then as long as before
    whole = scheme.apply(3, *arrays, *(sizes or ()))
    few = scheme.apply(3, *(x[:2] for x in arrays), *((2, *sizes[1:]) if sizes else ()))
    for x, y in zip(whole, few, strict=True):
        np.testing.assert_array_equal(x[:2], y)
    assert any((x[0] != x[1]).any() for x in whole)


@EACH
def test_the_key_is_a_seed_or_two_words_and_matters(name):
    scheme, arrays, sizes = CASES[name]
    words = rng.key(5)
    one = in_numpy(name, 5)
    assert_same(one, in_numpy(name, words))
    assert_same(one, maskattn_torch.corrupt(scheme, words, *map(torch.as_tensor, arrays), *(sizes or ())))
    assert any((x != y).any() for x, y in zip(one, in_numpy(name, 6), strict=True))
    assert any((x != y).any() for x, y in zip(one, in_numpy(name, rng.fold_in(words, 0)), strict=True))


@EACH
def test_schemes_are_hashable_and_take_an_empty_batch(name):
    scheme, arrays, sizes = CASES[name]
    assert scheme == eval(repr(scheme), vars(corruption).copy()) and len({scheme, scheme}) == 1
    drawn = scheme.apply(0, *(x[:0] for x in arrays), *((0, *sizes[1:]) if sizes else ()))
    whole = in_numpy(name, 0)
    assert all(x.shape == (0, *y.shape[1:]) for x, y in zip(drawn, whole, strict=True))


@pytest.mark.parametrize("name", ["mlm", "t5", "mae", "simmim"])
def test_schemes_without_a_loop_compile_in_pytorch(name):
    scheme, arrays, sizes = CASES[name]
    torch.compiler.reset()
    compiled = torch.compile(
        lambda key, *arrays: maskattn_torch.corrupt(scheme, key, *arrays, *(sizes or ())),
        backend="aot_eager",
        fullgraph=True,
    )
    assert_same(in_numpy(name, 9), compiled(torch.tensor(rng.key(9)), *map(torch.as_tensor, arrays)))


def test_x64_changes_nothing():
    with jax.enable_x64(True):
        for name in ("mlm", "beit"):
            scheme, arrays, sizes = CASES[name]
            jitted = jax.jit(
                lambda *arrays, scheme=scheme, sizes=sizes: maskattn_jax.corrupt(scheme, 4, *arrays, *(sizes or ()))
            )
            assert_same(in_numpy(name, 4), jitted(*arrays))


WIDE = np.zeros((1, 2000), int)
BAD = [
    (lambda: BERT(rate=1.5, mask_share=-1), ValueError, r"2 problems:\n.*rate must be in \(0, 1\], got 1.5\n.*mask_"),
    (lambda: BERT(rate=0), ValueError, r"rate must be in \(0, 1\], got 0.0"),
    (lambda: BERT(rate="half"), TypeError, "rate must be a number, got 'half'"),
    (lambda: BERT(mask_share=0.8, random_share=0.3), ValueError, "mask_share \\+ random_share must be at most 1"),
    (lambda: corruption.MLM(103, 100), ValueError, r"vocab_size must be in \(mask_id 103, 2\*\*31\), got 100"),
    (lambda: BERT(ignore_index=7), ValueError, "ignore_index must be no token of the vocabulary, got 7"),
    (lambda: BERT(whole_words=1), TypeError, "whole_words must be True or False, got 1"),
    (lambda: BERT().apply(0, TOKENS * 1.0), TypeError, "tokens must be an int array, got dtype float64"),
    (lambda: BERT().apply(0, TOKENS[0]), ValueError, r"tokens must have shape \[B, L\], got \[40\]"),
    (lambda: BERT().apply(0, TOKENS, SPECIAL[:1]), ValueError, r"special must have the shape \[6, 40\] of tokens"),
    (lambda: BERT().apply(0, TOKENS, WORDS), TypeError, "special must be a bool array, got dtype int64"),
    (lambda: BERT().apply(0, TOKENS, SPECIAL, WORDS), ValueError, "words must not be given, whole_words is False"),
    (lambda: BERT(whole_words=True).apply(0, TOKENS), ValueError, "words must be given, whole_words is True"),
    (lambda: BERT().apply(-1, TOKENS), ValueError, r"seed: expected an integer in \[0, 2\*\*31\), got -1"),
    (lambda: BERT().apply(0.5, TOKENS), TypeError, "seed: expected an integer, got 0.5"),
    (lambda: corruption.T5Spans(rate=1.0), ValueError, r"rate must be in \(0, 1\), got 1.0"),
    (lambda: corruption.T5Spans(mean_span=0.5), ValueError, "mean_span must be at least 1 and finite, got 0.5"),
    (lambda: corruption.T5Spans(5), ValueError, r"sentinels must be at most first_sentinel \+ 1 = 6, got 100"),
    (lambda: corruption.T5Spans(rate=0.5, mean_span=1).apply(0, WIDE), ValueError, "need 1000 sentinels, got 100"),
    (lambda: corruption.T5Spans().apply(0, TOKENS, LENGTHS + 1), ValueError, r"lengths must be in \[0, 40\], got 1 to"),
    (lambda: corruption.T5Spans().apply(0, TOKENS, LENGTHS[:2]), ValueError, r"lengths must have shape \[6\]"),
    (lambda: corruption.MAE(1.0), ValueError, r"ratio must be in \[0, 1\), got 1.0"),
    (lambda: corruption.MAE(-0.1), ValueError, r"ratio must be in \[0, 1\), got -0.1"),
    (lambda: corruption.MAE(0.9).apply(0, 2, 9), ValueError, "ratio must keep at least one of 9 patches, got 0.9"),
    (lambda: corruption.MAE().apply(0, -1, 9.0), TypeError, "batch must be at least 0(.|\n)*length must be an"),
    (lambda: corruption.SimMIM(200), ValueError, r"image_size must be a multiple of unit 32, got \(200, 200\)"),
    (lambda: corruption.SimMIM(patch=5), ValueError, "unit must be a multiple of patch 5, got 32"),
    (lambda: corruption.SimMIM(ratio=0.99), ValueError, "ratio must keep at least one of 36 units, got 0.99"),
    (lambda: corruption.BEiT(patches=196), ValueError, "patches must be fewer than the 196 of the grid"),
    (lambda: corruption.BEiT(min_aspect=0), ValueError, "min_aspect must be positive and finite, got 0.0"),
    (lambda: corruption.BEiT(min_aspect=0.5, max_aspect=0.4), ValueError, "in order, got 0.5 and 0.4"),
    (lambda: corruption.BEiT(max_block=10), ValueError, "min_block must be at most 10, the largest block, got 16"),
    (lambda: corruption.BEiT(200), ValueError, "grid must have fewer than 32768 patches, got 40000"),
    (lambda: corruption.BEiT().apply(0, 2.0), TypeError, "batch must be an int, got 2.0"),
    (lambda: corruption.IJEPA(target_scale=(0.2, 0.1)), ValueError, "target_scale must be .* low <= high, in"),
    (lambda: corruption.IJEPA(context_scale=0.5), TypeError, r"context_scale must be \(low, high\), got 0.5"),
    (lambda: corruption.IJEPA((5, 5)), ValueError, "min_keep must be below [0-9], the smallest target block, got 10"),
    (lambda: maskattn_jax.corrupt("mae", 0, 1, 4), TypeError, "scheme must be a scheme of .*, got 'mae'"),
    (lambda: maskattn_torch.corrupt(corruption.MAE, 0, 1, 4), TypeError, "must be a scheme of maskattn.corruption"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
