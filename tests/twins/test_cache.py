"""Key/value caches: step by step is the whole pass, whatever lies in which slot; and what is wrong is named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maskattn import AttentionConfig, biases, masks, standards
from tests.twin import same

pytestmark = pytest.mark.hurried

B, N, H, K, D, V = 2, 11, 4, 2, 8, 6
RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((B, N, H, D)).astype(np.float32)
KEY = RNG.standard_normal((B, N, K, D)).astype(np.float32)
VALUE = RNG.standard_normal((B, N, K, V)).astype(np.float32)
WINDOW = masks.Causal() & masks.SlidingWindow(3)
KEPT = masks.Causal() & masks.KeyMask(RNG.random((B, N)) < 0.7)
PACKED = masks.Causal() & masks.Segments(np.sort(RNG.integers(0, 3, (B, N)), 1))
T5 = biases.T5Buckets(RNG.standard_normal((8, H)).astype(np.float32), 16, bidirectional=False)
DENSE = biases.DenseBias(RNG.standard_normal((1, H, N, N)).astype(np.float32))
# (mask, slots, rolling, chunks)
WAYS = {
    # the lengths are few: JAX compiles the exact kernel for each
    "causal": (masks.Causal(), 16, False, (8, 1, 1, 1)),
    "rolling": (WINDOW, 5, True, (2, 2, 1, 1, 2, 2, 1)),
    "rolling, as wide as the window": (WINDOW, 4, True, (1,) * N),
    "chunked rolling": (masks.Causal() & masks.Chunked(3), 5, True, (2, 1, 1, 1, 2, 2, 1, 1)),
    "data": (KEPT & PACKED, 16, False, (8, 1, 1, 1)),
}


def made(twin, size=16, batch=B, **options):
    return twin.cache.Cache.empty(batch, size, K, D, V, **options)


def steps(twin, mask, size, rolling, chunks, bias=None, **options):
    """Output of all tokens, chunk after chunk."""
    cache, found, start = made(twin, size, rolling=rolling), [], 0
    for length in chunks:
        now = slice(start, start + length)
        query, key, value = (twin.array(x[:, now]) for x in (QUERY, KEY, VALUE))
        cache = cache.update(key, value)
        out = twin.attention(
            query, cache.key, cache.value, cache.mask(mask, length), bias=cache.bias(bias, length), **options
        )
        found.append(twin.to_numpy(out))
        start += length
    assert start == N and twin.to_numpy(cache.lengths).tolist() == [N] * B
    return np.concatenate(found, 1)


def whole(twin, mask, bias=None, **options):
    return twin.to_numpy(twin.attention(*map(twin.array, (QUERY, KEY, VALUE)), mask, bias=bias, **options))


#: In JAX the kernel is compiled for each length: with a bias, below, these two ways are walked there.
WITH_BIAS = ("causal", "rolling")


@pytest.mark.parametrize("way", [pytest.param(x, marks=[pytest.mark.slow_in("jax")] * (x in WITH_BIAS)) for x in WAYS])
def test_step_by_step_is_the_whole_pass_bit_for_bit_in_exact(twin, way):
    mask, size, rolling, chunks = WAYS[way]
    same(steps(twin, mask, size, rolling, chunks, kernel="exact"), whole(twin, mask, kernel="exact"))


@pytest.mark.parametrize(
    "way, bias",
    [
        ("causal", biases.ALiBi(H)),
        ("rolling", T5),
        pytest.param("causal", DENSE, marks=pytest.mark.slow_in("jax")),
    ],
)
def test_biases_are_those_of_the_positions(twin, way, bias):
    mask, size, rolling, chunks = WAYS[way]
    found = steps(twin, mask, size, rolling, chunks, bias, kernel="exact")
    same(found, whole(twin, mask, bias, kernel="exact"))


@pytest.mark.parametrize("way, kernels", [("causal", ("auto", "reference", "fused")), ("rolling", ("blockwise",))])
def test_step_by_step_is_the_whole_pass_within_tier_2_in_the_fast_kernels(twin, way, kernels):
    mask, size, rolling, chunks = WAYS[way]
    limit = 2 * standards.tier2_limit("float32", float(np.abs(VALUE).max()), float(np.abs(QUERY).max() ** 2 * D), N)
    expected = whole(twin, mask, kernel="exact")
    for kernel in kernels:
        found = steps(twin, mask, size, rolling, chunks, kernel=kernel)
        assert np.abs(found - expected).max() <= limit, kernel


def test_rows_go_on_from_where_each_of_them_is(twin):
    """A prompt of 8 and one of 6 tokens, padded on either side, then two steps: as each row by itself."""
    lengths = np.array([8, 6], np.int32)
    left = np.array([[True] * 8, [False] * 2 + [True] * 6])
    for given in ({"lengths": lengths}, {"valid": left}):
        cache = made(twin)
        query, key, value = (x[:, :8].copy() for x in (QUERY, KEY, VALUE))
        if "valid" in given:
            for x in (query, key, value):
                x[1, 2:] = x[1, :6]
        query, key, value = map(twin.array, (query, key, value))
        options = {name: twin.array(x) for name, x in given.items()}
        places = twin.to_numpy(cache.next_positions(8, **options))
        assert places[0].tolist() == [*range(8)] and sorted(places[1].tolist()) == [0, 0, *range(6)]
        cache = cache.update(key, value, **options)
        mask = cache.mask(WINDOW, 8, **options)
        out = [twin.to_numpy(twin.attention(query, cache.key, cache.value, mask, kernel="exact"))]
        assert twin.to_numpy(cache.lengths).tolist() == [8, 6]
        for step in range(2):
            now = [twin.array(np.stack([x[0, 8 + step], x[1, 6 + step]])[:, None]) for x in (QUERY, KEY, VALUE)]
            cache = cache.update(*now[1:])
            step_mask = cache.mask(WINDOW, 1)
            out.append(twin.to_numpy(twin.attention(now[0], cache.key, cache.value, step_mask, kernel="exact")))
        found = np.concatenate(out, 1)
        right = whole(twin, WINDOW, kernel="exact")
        same(found[0], right[0, :10])
        padding = slice(0, 2) if "valid" in given else slice(6, 8)
        assert not found[1, padding].any()
        same(np.delete(found[1], np.arange(10)[padding], 0), right[1, :8])


def test_guesses_are_taken_back(twin):
    cache = made(twin).update(twin.array(KEY[:, :6]), twin.array(VALUE[:, :6]))
    cache = cache.rewind(twin.array(np.array([6, 4])))
    assert twin.to_numpy(cache.positions)[:, :7].tolist() == [[0, 1, 2, 3, 4, 5, -1], [0, 1, 2, 3, -1, -1, -1]]
    now = [twin.array(np.stack([x[0, 6:7], x[1, 4:5]])) for x in (QUERY, KEY, VALUE)]
    cache = cache.update(*now[1:])
    out = twin.to_numpy(twin.attention(now[0], cache.key, cache.value, cache.mask(masks.Causal(), 1), kernel="exact"))
    right = whole(twin, masks.Causal(), kernel="exact")
    same(out, np.stack([right[0, 6:7], right[1, 4:5]]))
    assert twin.to_numpy(cache.rewind(0).lengths).tolist() == [0, 0]


def test_positions_may_begin_where_a_row_was(twin):
    cache = made(twin).update(twin.array(KEY[:, :6]), twin.array(VALUE[:, :6]))
    again = cache.update(
        twin.array(KEY[:, 4:6]), twin.array(VALUE[:, 4:6]), twin.array(np.array([[4, 5], [6, 7]], np.int32))
    )
    assert twin.to_numpy(again.lengths).tolist() == [6, 8]
    same(np.asarray(twin.to_numpy(again.key))[0, :6], KEY[0, :6])
    same(np.asarray(twin.to_numpy(again.key))[1, 6:8], KEY[1, 4:6])


def test_what_a_rolling_cache_took_back_is_not_there_again(twin):
    cache = made(twin, 5, rolling=True).update(twin.array(KEY[:, :7]), twin.array(VALUE[:, :7]))
    held = cache.rewind(5)
    assert twin.to_numpy(held.positions).tolist() == [[-1, -1, 2, 3, 4]] * B
    more = held.update(twin.array(KEY[:, :1]), twin.array(VALUE[:, :1]))
    assert twin.to_numpy(more.positions).tolist() == [[5, -1, 2, 3, 4]] * B
    assert twin.to_numpy(held.rewind(0).lost).tolist() == [0, 0]


def test_beams_and_other_rows_are_copies(twin):
    cache = made(twin).update(twin.array(KEY[:, :4]), twin.array(VALUE[:, :4]), lengths=twin.array(np.array([4, 2])))
    found = cache.reorder(twin.array(np.array([1, 1, 0])))
    assert twin.to_numpy(found.lengths).tolist() == [2, 2, 4]
    before = twin.to_numpy(cache.key).copy()
    same(twin.to_numpy(found.key), before[[1, 1, 0]])
    found.update(*(twin.array(np.ones((3, 1, K, n), np.float32)) for n in (D, V)))
    same(twin.to_numpy(cache.key), before)


def test_a_long_prompt_goes_through_a_wider_cache(twin):
    cache = made(twin, 4, rolling=True).update(twin.array(KEY[:, :3]), twin.array(VALUE[:, :3]))
    wide = cache.resize(4 + 12).update(twin.array(KEY[:, 3:]), twin.array(VALUE[:, 3:]))
    out = twin.attention(twin.array(QUERY[:, 3:]), wide.key, wide.value, wide.mask(WINDOW, 8), kernel="exact")
    same(twin.to_numpy(out), whole(twin, WINDOW, kernel="exact")[:, 3:])
    narrow, straight = wide.resize(4), cache.update(twin.array(KEY[:, 3:]), twin.array(VALUE[:, 3:]))
    for one, other in (
        (narrow.key, straight.key),
        (narrow.value, straight.value),
        (narrow.positions, straight.positions),
    ):
        same(one, other)
    grown = made(twin, 4).update(twin.array(KEY[:, :3]), twin.array(VALUE[:, :3])).resize(9)
    assert grown.size == 9 and grown.key.shape[1] == 9
    same(twin.to_numpy(grown.key)[:, :3], KEY[:, :3])


def test_what_is_not_in_use_reaches_nothing(twin):
    bad = np.full((B, 16, K, D), np.nan, np.float32)
    cache = made(twin).update(twin.array(bad), twin.array(bad[..., :V])).rewind(0)
    cache = cache.update(twin.array(KEY[:, :3]), twin.array(VALUE[:, :3]), lengths=twin.array(np.array([3, 1])))
    for mask in (masks.Causal(), WINDOW):
        step = cache.mask(mask, 1)
        for kernel in ("auto", "exact"):
            out = twin.attention(twin.array(QUERY[:, :1]), cache.key, cache.value, step, kernel=kernel)
            assert np.isfinite(twin.to_numpy(out)).all()


def bad_calls(cache, array):
    """(words of the error, the call): each leaves the cache as it is."""
    key, value = array(KEY[:, :2]), array(VALUE[:, :2])
    wide, tall = array(KEY[:, :2, :, :5]), array(np.zeros((B, 17, K, D), np.float32))
    ints = lambda *rows: array(np.array(rows, np.int32))  # noqa: E731
    yield (
        "the cache has 16 slots, but row 0 would have 21 tokens",
        lambda: cache.update(tall, array(np.zeros((B, 17, K, V), np.float32))),
    )
    yield r"key must have shape \[2, L, 2, 8\], got \[2, 2, 2, 5\]", lambda: cache.update(wide, value)
    yield "2 problems", lambda: cache.update(wide, array(VALUE[:1, :2]))
    yield (
        "key must be float32, as the cache is, got float16",
        lambda: cache.update(array(KEY[:, :2].astype(np.float16)), value),
    )
    yield "must have one length, got 2 and 1", lambda: cache.update(key, array(VALUE[:, :1]))
    yield "key must be an array, got None", lambda: cache.update(None, value)
    yield "not negative", lambda: cache.update(key, value, ints([-1, 0], [4, 5]))
    yield (
        r"without a gap, got \[5, 6\] in row 1, which has 4 tokens",
        lambda: cache.update(key, value, ints([4, 5], [5, 6])),
    )
    yield "follow one another", lambda: cache.update(key, value, ints([4, 6], [4, 5]))
    yield (
        "would have 17 tokens",
        lambda: cache.update(array(np.zeros((B, 13, K, D), np.float32)), array(np.zeros((B, 13, K, V), np.float32))),
    )
    yield r"positions must have shape \[2, 2\]", lambda: cache.update(key, value, ints([4], [4]))
    yield (
        "give one of them",
        lambda: cache.update(key, value, lengths=ints(1, 1)[0], valid=array(np.ones((B, 2), bool))),
    )
    yield "lengths must be at most 2", lambda: cache.update(key, value, lengths=array(np.array([1, 3])))
    yield r"valid must have shape \[2, 2\]", lambda: cache.update(key, value, valid=array(np.ones((B, 3), bool)))
    yield "at most those so far, got 5 in row 0", lambda: cache.rewind(5)
    yield "lengths must be an int", lambda: cache.rewind("all")
    yield "indices must be rows from 0 to 1", lambda: cache.reorder(array(np.array([0, 2])))
    yield "more than 3 slots", lambda: cache.resize(3)
    yield "size must be at least 1", lambda: cache.resize(0)
    yield "mask must be a Mask of whole sequences", lambda: cache.mask(array(np.ones((1, 1), bool)), 1)
    yield "is for 3 tokens, but row 0 has 4", lambda: cache.mask(masks.KeyMask(np.ones((1, 3), bool)), 1)
    yield "bias must be a Bias of whole sequences", lambda: cache.bias(array(np.ones((1, 1), np.float32)), 1)
    yield "q_len must be", lambda: cache.next_positions(-1)


def test_what_is_wrong_is_named_and_the_cache_unchanged(twin):
    cache = made(twin).update(twin.array(KEY[:, :4]), twin.array(VALUE[:, :4]))
    before = [twin.to_numpy(x).copy() for x in (cache.key, cache.value, cache.lengths)]
    for words, call in bad_calls(cache, twin.array):
        with pytest.raises((TypeError, ValueError), match=words):
            call()
        for held, was in zip((cache.key, cache.value, cache.lengths), before, strict=True):
            same(held, was)


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((2, 0, 2, 8), "size must be at least 1"),
        ((-1, 4, 0, 8), "2 problems"),
        ((2, 4, 2, 8.0), "head_dim must be an int"),
    ],
)
def test_sizes_of_a_cache_are_checked(twin, sizes, words):
    with pytest.raises((TypeError, ValueError), match=words):
        twin.cache.Cache.empty(*sizes)
    with pytest.raises(TypeError, match="dtype must be one of"):
        made(twin, dtype=twin.numpy.int32)
    with pytest.raises(TypeError, match="config must be an AttentionConfig"):
        twin.cache.Cache.for_config(None, 1, 2)


def test_a_cache_for_a_configuration(twin):
    config = AttentionConfig(24, H, num_kv_heads=K, head_dim=D, v_head_dim=V)
    cache = twin.cache.Cache.for_config(config, 3, 7, rolling=True)
    assert cache.key.shape == (3, 7, K, D) and cache.value.shape == (3, 7, K, V) and cache.rolling
    assert repr(cache) == (
        "Cache(batch=3, size=7, num_kv_heads=2, head_dim=8, v_head_dim=6, rolling=True, dtype=float32)"
    )


def test_a_window_that_reaches_back_too_far_is_refused_by_name(twin):
    cache = made(twin, 5, rolling=True).update(twin.array(KEY[:, :7]), twin.array(VALUE[:, :7]))
    cache.mask(WINDOW, 2)
    with pytest.raises(
        ValueError, match="the token at 4 of row 0 may attend to tokens below 2.*3 tokens needs 6 slots"
    ):
        cache.mask(WINDOW, 3)
    with pytest.raises(ValueError, match="may attend to tokens below 2"):
        cache.mask(masks.Causal(), 1)


def test_one_compiled_step_serves_all(twin):
    """In a compiled graph lengths are not known: nothing is compiled again, and what cannot be kept is forbidden."""

    def step(cache, query, key, value):
        cache = cache.update(key, value)
        return cache, twin.attention(query, cache.key, cache.value, cache.mask(WINDOW, 1), kernel="reference")

    traced = []

    def counted(*given):
        traced.append(1)
        return step(*given)

    right = whole(twin, WINDOW, kernel="reference")
    limit = standards.value("same.tiles") * np.abs(right).max()
    for size, rolling in ((6, False), (5, True)):
        cache = made(twin, size, rolling=rolling)
        compiled = twin.compile(counted if twin.name == "jax" else step)
        for i in range(8):
            given = (twin.array(x[:, i : i + 1]) for x in (QUERY, KEY, VALUE))
            cache, out = quietly(twin, compiled, cache, *given)
            if i < size or rolling:
                np.testing.assert_allclose(twin.to_numpy(out), right[:, i : i + 1], rtol=0, atol=limit)
            else:
                assert not twin.to_numpy(out).any()
        if not rolling:
            same(twin.to_numpy(cache.key), KEY[:, :6])  # nothing was written over
            assert (twin.to_numpy(cache.lengths) > size).all() and (twin.to_numpy(cache.positions) == -1).all()
            with pytest.raises(ValueError, match="the cache has 6 slots"):
                cache.update(twin.array(KEY[:, :1]), twin.array(VALUE[:, :1]))
    assert len(traced) <= 2


def quietly(twin, function, *given):
    """A call for which nobody can ask for a gradient, and which may not be compiled again in PyTorch."""
    if twin.name == "jax":
        return function(*given)
    torch = twin.framework
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        return function(*given)


def test_wrong_positions_in_a_compiled_step_make_the_row_attend_to_nothing(twin):
    def add(cache, key, value, positions):
        return cache.update(key, value, positions)

    cache = made(twin).update(twin.array(KEY[:, :4]), twin.array(VALUE[:, :4]))
    positions = twin.array(np.array([[4, 5], [7, 8]], np.int32))
    found = quietly(twin, twin.compile(add), cache, twin.array(KEY[:, 4:6]), twin.array(VALUE[:, 4:6]), positions)
    assert twin.to_numpy(found.positions)[:, :7].tolist() == [[0, 1, 2, 3, 4, 5, -1], [-1] * 7]
    assert twin.to_numpy(found.rewind(4).positions)[1, :5].tolist() == [0, 1, 2, 3, -1]
    assert not twin.to_numpy(found.key)[1, 4:].any()


def test_a_cache_goes_through_vmap(twin):
    first = made(twin).update(twin.array(KEY[:, :4]), twin.array(VALUE[:, :4]))
    keys, values = (twin.array(np.stack([x[:, 4:5], x[:, 5:6]])) for x in (KEY, VALUE))
    found = twin.vmap(lambda key, value: first.update(key, value).key)(keys, values)
    for i in range(2):
        same(twin.to_numpy(found)[i, :, 4], KEY[:, 4 + i])
    same(twin.to_numpy(first.key)[:, 4], np.zeros((B, K, D), np.float32))


def test_gradients_flow_through_a_cache(twin):
    def loss(key, value):
        cache = made(twin).update(key[:, :3], value[:, :3]).update(key[:, 3:5], value[:, 3:5])
        query = twin.array(QUERY[:, 3:5])
        return twin.attention(query, cache.key, cache.value, cache.mask(masks.Causal(), 2), kernel="reference").sum()

    def plainly(key, value):
        query = twin.array(QUERY[:, 3:5])
        mask = masks.Causal().at(q_offset=3)
        return twin.attention(query, key[:, :5], value[:, :5], mask, kernel="reference").sum()

    given = twin.array(KEY), twin.array(VALUE)
    limit = standards.value("same.tiles")
    if twin.name == "jax":  # operation by operation takes ten times as long
        loss, plainly = twin.compile(loss), twin.compile(plainly)
    for one, other in zip(twin.grad(loss, *given), twin.grad(plainly, *given), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=limit * np.abs(other).max())


def test_the_last_positions_of_every_way_are_there(twin):
    for rolling, size in itertools.product((False, True), (4, 7)):
        cache = made(twin, size, rolling=rolling)
        for i in range(4):
            cache = cache.update(twin.array(KEY[:, i : i + 1]), twin.array(VALUE[:, i : i + 1]))
        positions = twin.to_numpy(cache.positions)
        assert positions.dtype == np.int32
        for row, slot in np.argwhere(positions >= 0):
            same(twin.to_numpy(cache.key)[row, slot], KEY[row, positions[row, slot]])
        assert sorted(positions[0][positions[0] >= 0].tolist()) == [0, 1, 2, 3]
