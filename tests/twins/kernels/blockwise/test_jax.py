"""The blockwise kernel of the JAX twin: its plan, and its results against the float64 oracle."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskattn_jax
from maskattn import masks, standards
from maskattn.parity.attention.cases import Case, Shape, compose
from maskattn.parity.draws import Draws
from maskattn.schedule import tiles
from maskattn_jax import lower
from maskattn_jax.kernels import blockwise
from maskattn_jax.kernels.blockwise.shards import Origin
from maskattn_jax.kernels.blockwise.steps import _steps, cheapest
from maskattn_jax.kernels.blockwise.tiling import divide
from maskattn_jax.testing.adapter import Adapter
from tests.twins.kernels import judged

FEW = Shape(2, 20, 28, 8, 4, 5, 3)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_each_tile_that_is_not_empty_is_in_one_step(xp):
    draws = np.random.default_rng(0)
    for _ in range(30):
        states = draws.choice(3, (2, 1, 3, 13), p=draws.dirichlet([1, 1, 1])).astype(np.int8)
        for width in (1, 2, 4, 13):
            seen, count = np.zeros(states.shape, int), np.zeros(states.shape[:-1], int)
            steps = _steps(xp.asarray(states), width, xp)
            for begin, there in replace(steps, after=np.asarray(steps.after)).each():
                for at in zip(*np.nonzero(there), strict=True):
                    run = (*at, slice(begin[at], begin[at] + width))
                    assert steps.masked or begin[at] + width <= 13 and (states[run] == tiles.FULL).all()
                    seen[run] += 1
                count += there
            assert not steps.once or (count == 1).all()
            assert seen.max() <= 1 and (seen >= (states != tiles.EMPTY)).all()


@pytest.mark.parametrize(("length", "width", "masked"), [(4, 4, False), (6, 2, False), (5, 4, True)])
def test_full_tiles_need_no_mask_but_where_a_step_reaches_beyond_the_last(length, width, masked):
    steps = _steps(np.full((1, 1, 1, length), tiles.FULL, np.int8), width, np)
    assert (steps.masked, steps.once) == (masked, length == width)


def test_numpy_data_give_steps_in_numpy_while_a_function_is_traced():
    """And data that are arguments of the function do not: their steps are traced."""
    ids = np.repeat(np.arange(5), 240)[None]
    array = jnp.zeros((1, 1200, 2, 4))
    origin = Origin(*[jnp.zeros((), jnp.int32)] * 3)
    made = []

    @jax.jit
    def function(given):
        for data in (ids, given):
            mask = lower.bind(masks.Segments(data))
            tiling, steps = cheapest(mask, array, array, (1, 2, 1200, 1200), origin, None)
            made.append((tiling.q_block, type(steps.after) is np.ndarray))
        return given

    function(jnp.asarray(ids))
    assert made == [(240, True), (400, False)]


@jax.jit
def compiled(query, key, value, keep, cotangent):
    def attend(query, key, value):
        return maskattn_jax.attention(query, key, value, keep, kernel="blockwise", return_lse=True, blocks=(8, 8))

    results, pull = jax.vjp(attend, query, key, value)
    return (*results, *pull((cotangent["output"], cotangent["lse"])))


def run(inputs, cotangent):
    """One compilation serves every mask, which is given as an array."""
    return compiled(*(inputs[name] for name in ("query", "key", "value", "mask")), cotangent)


def composition(number):
    """Another random expression for each of eight heads."""
    alone = replace(FEW, heads=1, kv_heads=1)
    parts = [compose(alone, Draws(f"{number}/{head}"), depth=1 + head % 3) for head in range(8)]
    dense = [part.dense(FEW.q_len, FEW.kv_len, FEW.batch, 1) for part in parts]
    mask = masks.Dense(np.concatenate(dense, axis=1))
    return Case(f"{number}", "blockwise", FEW, "float32", mask, seed=number)


def test_200_random_compositions():
    found = [line for number in range(25) for line in judged.failures(composition(number), run)]
    assert not found, "\n".join(found)


BY_HEAD = masks.PerHead([masks.Causal(), masks.SlidingWindow(9), masks.Full(), masks.Dilated(2, 3)])


@pytest.mark.parametrize(
    ("mask", "shape", "blocks", "parts", "groups"),
    [
        (BY_HEAD, Shape(8, 20, 28, 4, 4, 5, 3), (8, 8), (4, 1), (2, 4)),
        (masks.SlidingWindow(40, 9), Shape(2, 300, 300, 8, 8, 4, 4), (256, 256), (1, 4), (2, 2)),
    ],
    ids=["batch rows", "heads"],
)
def test_tiles_that_are_computed_side_by_side(mask, shape, blocks, parts, groups):
    case = Case("parts", "blockwise", shape, "float32", mask, seed=1)
    twin = Adapter(kernel="blockwise", mode="jit-mask", blocks=blocks)

    def run(inputs, cotangent):
        sizes = (shape.batch, shape.heads, shape.q_len, shape.kv_len)
        tiling = divide(mask, inputs["query"], inputs["key"], sizes, blocks)
        assert (tiling.parts, tiling.groups) == (parts, groups)
        return twin.run(case, inputs, None, cotangent)

    assert not judged.failures(case, run)


def test_a_tile_that_is_skipped_is_seen(monkeypatch):
    real = blockwise.cheapest

    def skipping(*arguments):
        tiling, steps = real(*arguments)
        after = np.array(steps.after)
        after[..., 1:] = tiling.kv_tiles
        return tiling, replace(steps, after=after)

    query, key, value = (
        jnp.asarray(np.random.default_rng(n).standard_normal((1, 40, 2, 4), np.float32)) for n in (0, 1, 2)
    )
    attend = functools.partial(maskattn_jax.attention, query, key, value, masks.Causal())
    right = attend(kernel="blockwise", blocks=(8, 8))
    monkeypatch.setattr(blockwise, "cheapest", skipping)
    wrong = attend(kernel="blockwise", blocks=(8, 8))
    assert float(jnp.abs(right - wrong).max()) > 0.1
    np.testing.assert_allclose(right, attend(kernel="reference"), rtol=0, atol=standards.value("same.tiles"))


def test_an_average_over_all_keys_is_refused_by_name():
    x = jnp.ones((1, 4, 1, 2))
    with pytest.raises(ValueError, match='empty_rows "mean" averages all values'):
        maskattn_jax.attention(x, x, x, masks.Causal(), empty_rows="mean", kernel="blockwise")
