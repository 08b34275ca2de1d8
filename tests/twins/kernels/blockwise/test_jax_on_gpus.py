"""kernel="blockwise" of JAX as on a GPU: interpreted against the float64 oracle, and lowered for CUDA.

No GPU is needed, and none runs these kernels here: Pallas interprets what it lowers for one.
"""

import functools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec, use_abstract_mesh

import maskattn_jax
from maskattn import biases, masks, schedule, standards
from maskattn._declared import data
from maskattn.masks._core import library_classes
from maskattn.parity.attention import cases, checks
from maskattn.parity.attention.cases import Case, Shape
from maskattn.parity.draws import Draws
from maskattn_jax import lower
from maskattn_jax._partition import Origin
from maskattn_jax._platform import assumed, platform
from maskattn_jax.kernels.blockwise.pallas.lists import lists_of
from maskattn_jax.kernels.blockwise.pallas.loops import read_row, visit
from maskattn_jax.kernels.blockwise.sizes import Tile, Widths, choose
from maskattn_jax.kernels.blockwise.tiling import divide
from maskattn_jax.testing.adapter import Adapter

pytestmark = pytest.mark.jax
RNG = np.random.default_rng(3)
SMALL = Shape(2, 20, 28, 4, 2, 24, 12)  # two tiles either way, the last cut short; widths that are no powers of two
TRITON = re.compile(r"custom_call @(?:__gpu\$xla\.gpu\.triton|triton_kernel_call)")


@pytest.fixture(autouse=True)
def quickly_compiled():
    """What is interpreted is large, and runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def gpu():
    return AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")


def failures(case, mode="jit-mask"):
    """What the suite finds wrong with a case that is interpreted as on a GPU."""
    with assumed("gpu", interpret=True):
        adapter = Adapter(kernel="blockwise", mode=mode, blocks=(16, 16))
        inputs, cotangent = cases.inputs(case), cases.cotangent(case)
        got = adapter.run(case, inputs, None, cotangent)
    verdict = checks.judge(case, inputs, cotangent)
    found = checks.form(case, "kernel", got, verdict) + checks.tier0(case, "kernel", got, verdict)
    # in 16 bits weights are rounded before the product with values, as by the vendors
    found += checks.tier2(case, "kernel", got, verdict, rounded_inside=True)
    return [f"{case.id}: {finding}" for finding in found if not finding.held]


def several(q_len, kv_len):
    ids = [np.sort(RNG.integers(-1, 3, (2, n)), axis=1) for n in (q_len, kv_len)]
    return masks.Segments(*ids) & masks.Causal(kv_len - q_len)


CASES = {
    "explicit": {"mask": masks.Dense(RNG.random((2, 4, 20, 28)) < 0.2)},
    "documents": {"mask": several(20, 28), "dtype": "bfloat16"},
    "everything": {
        "mask": masks.PerHead([masks.Causal(3), masks.SlidingWindow(4, 3), masks.Full(), masks.Causal(-18)]),
        "bias": biases.T5Buckets(RNG.standard_normal((8, 4)).astype(np.float32), max_distance=12),
        "sinks": True,
        "softcap": 3.0,
        "dropout_rate": 0.25,
        "scale": -0.3,
    },
    "explicit bias": {"mask": masks.Causal(4), "bias": "dense", "empty_rows": "nan"},
    "keys that nothing reaches": {"mask": masks.KeyPadding(np.array([9, 0])), "plant": float("nan")},
}


@pytest.mark.parametrize("name", CASES)
def test_interpreted_it_is_attention(name):
    fields = {"dtype": "float32", **CASES[name]}
    assert failures(Case(id=f"gpu/{name}", family="gpu", shape=SMALL, **fields)) == []


@pytest.mark.parametrize("bias", ["ALiBi", "of keys"])
def test_gradients_of_biases_are_those_of_the_formula(bias):
    made = biases.ALiBi(4) if bias == "ALiBi" else biases.DenseBias(RNG.standard_normal((2, 1, 1, 28), np.float32))
    arrays = [jnp.asarray(RNG.standard_normal(size, np.float32)) for size in ((2, 20, 4, 16), (2, 28, 2, 16))]

    def gradient(kernel):
        def loss(bias):
            out = maskattn_jax.attention(arrays[0], arrays[1], arrays[1], masks.Causal(4), bias=bias, kernel=kernel)
            return jnp.sum(out * arrays[0])

        return jax.tree.leaves(jax.jit(jax.grad(loss, allow_int=True))(maskattn_jax.lower.bind(made)))[0]

    with assumed("gpu", interpret=True):
        got = gradient("blockwise")
    right = gradient("reference")
    assert got.dtype == right.dtype and float(jnp.abs(got).max()) > 0
    assert float(jnp.abs(got - right).max()) <= standards.value("same.gradient") * max(1, float(jnp.abs(right).max()))


VISITED = [
    masks.Causal(5),
    masks.SlidingWindow(20, 3),
    masks.KeyPadding(np.array([70, 0])),
    masks.PrefixLM(np.array([40, 0])) & masks.SlidingWindow(60, 30) & masks.KeyPadding(np.array([90, 64])),
    masks.Segments(np.sort(RNG.integers(-1, 3, (2, 100)), 1), np.sort(RNG.integers(-1, 3, (2, 90)), 1)),
    masks.Dense(RNG.integers(500, size=(2, 1, 100, 90)) == 0) | masks.Causal(-60),
    masks.PerHead([masks.Causal(), masks.SlidingWindow(3), masks.Empty(), masks.Full()]),
]


@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
@pytest.mark.parametrize("mask", VISITED, ids=lambda mask: type(mask).__name__)
def test_the_tiles_that_are_visited_are_those_of_the_schedule(mask, traced):
    """By the lists and the walk of the kernels, interpreted: each once, a full one without the mask, no other."""
    sizes, tile = (2, 4, 100, 90), Tile(32, 16, 4, 2)
    query, key = jnp.zeros((2, 100, 4, 16)), jnp.zeros((2, 90, 2, 16))
    tiling = divide(mask, query, key, sizes, (tile.q, tile.k))
    right = schedule.Schedule.of(mask, *sizes, tile.q, tile.k).states()
    for by_key in (False, True):
        lists = made(mask, tiling, tile, by_key, traced and bool(jax.tree.leaves(lower.bind(mask))))
        expected = right.swapaxes(2, 3) if by_key else right
        last = (slice(None),) * 2 + ((slice(None), -1) if not by_key else (slice(None), -1))
        expected = expected.copy()
        expected[last] = np.minimum(expected[last], schedule.MIXED)  # cut short: read with bounds
        for careful in (False, True):
            found = walked(lists, expected.shape[2:], careful)
            assert (found == (np.minimum(expected, schedule.MIXED) if careful else expected)).all()


def made(mask, tiling, tile, by_key, traced):
    zero = jnp.zeros((), jnp.int32)
    bound = lower.bind(mask)
    plan = functools.partial(lists_of, tiling=tiling, origin=Origin(zero, zero, zero), tile=tile, by_key=by_key)
    return (jax.jit(plan, static_argnames="shared") if traced else plan)(bound, shared=by_key)


def walked(lists, shape, careful):
    """1 for each tile that is visited with the mask and 2 for each without, by `Lists`' planes, rows and columns."""

    def kernel(rows_ref, index_ref, out_ref):
        place = pl.program_id(2)
        row = read_row(rows_ref, place)

        def step(tile, carry, masked):
            out_ref[row.tile, tile] += 1 if masked else 2
            return carry

        visit(row, lambda n: index_ref[place, n], lists.ranges, careful, step, jnp.int32(0))

    rows, index = jnp.asarray(lists.rows), jnp.asarray(lists.index)
    plane = lambda x: pl.BlockSpec((None, None, *x.shape[2:]), lambda b, h, i: (b, h, 0, 0))  # noqa: E731
    zeros = jnp.zeros((*rows.shape[:2], *shape), jnp.int32)
    call = pl.pallas_call(
        lambda rows_ref, index_ref, _, out_ref: kernel(rows_ref, index_ref, out_ref),
        grid=rows.shape[:3],
        in_specs=[plane(rows), plane(index), plane(zeros)],
        out_specs=plane(zeros),
        out_shape=zeros,
        input_output_aliases={2: 0},
        interpret=True,
    )
    return np.asarray(call(rows, index, zeros))


def test_tiles_fit_into_shared_memory():
    """Whatever the widths and dtypes, and what is explicit beside them; of a wish for blocks no more than fits."""
    for width in (16, 64, 128, 256):
        for size in (2, 4):
            for explicit in (0, 4):
                widths = Widths(width, width, size, explicit)
                sizes = choose((4096, 4096), widths, False, None, False)
                for tile, rows in ((sizes.forward, sizes.forward.q), (sizes.dq, 2 * sizes.dq.q)):
                    taken = size * width * (rows + 2 * tile.stages * tile.k) + explicit * tile.stages * tile.q * tile.k
                    assert taken <= 227 << 10
    assert choose((40, 4096), Widths(64, 64, 2), False, None, False).forward == Tile(64, 64, 4, 3)
    assert choose((4096, 4096), Widths(64, 64, 2), False, (20, 512), False).forward == Tile(32, 64, 4, 3)


def test_new_documents_and_lengths_compile_nothing():
    """And are mapped: the loops of a kernel have bounds that depend on the data of each."""
    array = jnp.asarray(RNG.standard_normal((3, 20, 2, 16), np.float32))
    count = 0

    def attend(query, ids, lengths, kernel):
        nonlocal count
        count += 1
        mask = masks.Segments(ids[None]) & masks.KeyPadding(lengths[None])
        return maskattn_jax.attention(query[None], query[None], query[None], mask, kernel=kernel, blocks=(16, 16))[0]

    mapped = jax.jit(jax.vmap(attend, (0, 0, 0, None)), static_argnums=3)
    for seed in range(2):
        draws = np.random.default_rng(seed)
        given = jnp.asarray(np.sort(draws.integers(0, 3, (3, 20)), 1)), jnp.asarray(draws.integers(0, 21, 3))
        with assumed("gpu", interpret=True):
            got = mapped(array, *given, "blockwise")
        right = mapped(array, *given, "reference")
        assert float(jnp.abs(got - right).max()) <= standards.value("same.tiles")
    assert count == 2  # once for each kernel


def lowered(mask, shape, bias=None, dtype="bfloat16", gradient=True, **options):
    """The program for CUDA of a call and its gradients, of shapes alone."""
    batch, q_len, kv_len, heads, kv_heads, dim, v_dim = shape
    sizes = ((q_len, heads, dim), (kv_len, kv_heads, dim), (kv_len, kv_heads, v_dim))
    given = [jax.ShapeDtypeStruct((batch, *size), jnp.dtype(dtype)) for size in sizes]

    def loss(query, key, value, mask, bias):
        out = maskattn_jax.attention(query, key, value, mask, bias=bias, kernel="blockwise", **options)
        return out.astype(jnp.float32).sum()

    function = jax.grad(loss, (0, 1, 2, 4), allow_int=True) if gradient else loss
    with assumed("gpu"), use_abstract_mesh(AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=gpu())):
        return jax.jit(function).trace(*given, mask, bias).lower(lowering_platforms=("cuda",)).as_text()


LONG = (2, 272, 336, 4, 2, 64, 64)
LOWERED = {
    "nothing": (None, LONG, {}),
    "window": (masks.Causal(64) & masks.SlidingWindow(50, 0), LONG, {"softcap": 20.0, "dtype": "float16"}),
    "lengths": (masks.KeyPadding(np.array([300, 5])), (2, 272, 336, 4, 4, 80, 40), {}),
    "wide": (masks.Causal(), (1, 272, 336, 2, 1, 256, 256), {}),
    "float32": (masks.Causal(), (1, 272, 336, 2, 2, 96, 96), {"dtype": "float32", "precision": "high"}),
    "dropout": (masks.Causal(), LONG, {"dropout_rate": 0.1, "dropout_key": 3}),
    "ALiBi": (masks.Causal(), LONG, {"bias": biases.ALiBi(4)}),
    "a table": (masks.Causal(), LONG, {"bias": biases.T5Buckets(np.zeros((32, 4), np.float32))}),
    "a bias of keys": (None, LONG, {"bias": biases.DenseBias(np.zeros((2, 1, 1, 336), np.float32))}),
}


@pytest.mark.parametrize("name", LOWERED)
def test_lowered_for_cuda_it_holds_no_scores(name):
    mask, shape, options = LOWERED[name]
    bias = options.pop("bias", None) if (options := dict(options)) else None
    text = lowered(mask, shape, bias, **options)
    assert len(TRITON.findall(text)) == (4 if bias is not None else 3)
    assert not scores(text)


def scores(text):
    """The types of arrays with two axes as long as sequences, or of so many entries in one."""
    types = {tuple(map(int, found[:-1].split("x"))) for found in re.findall(r"tensor<((?:\d+x)+)", text)}
    return [shape for shape in types if sum(n >= 272 for n in shape) > 1 or any(n >= 272 * 336 for n in shape)]


def test_scores_would_be_found():
    text = lowered(masks.Causal(), LONG, jnp.zeros((4, 272, 336)), gradient=False)
    assert scores(text)


def test_every_mask_of_the_library_can_be_in_a_kernel():
    """All in one expression, their data traced: one program for CUDA."""
    shape = Shape(4, 16, 16, 4, 4, 16, 16)
    kinds = {kind: kind.examples(shape, Draws(0)) for kind in library_classes().values()}
    assert {kind.__name__ for kind, made in kinds.items() if not made} == {
        "And",
        "Or",
        "Not",
        "At",
        "Positioned",
        "Stored",
    }
    places = np.arange(16)[None]
    moved = [masks.Causal().at(q_offset=np.array([1, 2, 3, 4])), masks.Causal().with_positions(places, places)]
    each = [~mask & masks.Causal(1) for made in kinds.values() for mask in made] + moved
    text = lowered(functools.reduce(lambda one, other: one | other, each), (4, 16, 16, 4, 4, 16, 16), gradient=False)
    assert len(TRITON.findall(text)) == 1


def test_a_mask_that_is_not_the_librarys_is_part_of_a_kernel_or_left_to_loops():
    """By its formula: arithmetic on entries of its data goes into a kernel; anything else is computed by XLA."""

    @dataclass(frozen=True)
    class Near(masks.Mask):
        reach: object = data("int", "[]")

        def allowed(self, b, h, q, k):
            return abs(q - k) <= self.reach

    @dataclass(frozen=True)
    class Sorted(masks.Mask):
        ends: object = data("int", "[N]")

        def allowed(self, b, h, q, k):
            return jnp.searchsorted(self.ends, q) == jnp.searchsorted(self.ends, k)

    ends = np.array([5, 100, 200])
    assert len(TRITON.findall(lowered(Near(np.array(3)), LONG, gradient=False))) == 1
    assert len(TRITON.findall(lowered(Sorted(ends), LONG, gradient=False))) == 0


def test_what_was_traced_for_a_gpu_is_right_where_it_is_compiled_for_a_cpu():
    given = [jnp.asarray(RNG.standard_normal((2, 20, 2, 16), np.float32)) for _ in range(3)]
    mask = masks.KeyPadding(np.array([0, 13])) & masks.Causal()
    with assumed("gpu"):
        got = jax.jit(functools.partial(maskattn_jax.attention, mask=mask, kernel="blockwise"))(*given)
    right = maskattn_jax.attention(*given, mask, kernel="reference")
    assert float(jnp.abs(got - right).max()) <= standards.value("same.tiles")


def test_the_mesh_of_an_array_says_where_it_will_run():
    """And inside a `shard_map`, here of explicit axes, the kernels say over which axes their results vary."""
    mesh = AbstractMesh((2, 2), ("b", "h"), (AxisType.Explicit,) * 2, abstract_device=gpu())
    sharding = NamedSharding(mesh, PartitionSpec("b", None, "h"))
    found = []

    def loss(query, key, ids):
        found.append(platform(query))
        mask = masks.Segments(ids) & masks.Causal()
        return maskattn_jax.attention(query, key, key, mask, kernel="blockwise").astype(jnp.float32).sum()

    with use_abstract_mesh(mesh):
        given = [jax.ShapeDtypeStruct((4, 64, heads, 16), jnp.bfloat16, sharding=sharding) for heads in (4, 2)]
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(*given, jax.ShapeDtypeStruct((4, 64), jnp.int32))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert set(found) == {"gpu"} and len(TRITON.findall(text)) == 3
    assert platform() == "cpu"


def test_for_a_tpu_the_loops_are_lowered_without_scores():
    given = [jax.ShapeDtypeStruct((2, n, 4, 64), jnp.bfloat16) for n in (1024, 1280)]

    def loss(query, key, lengths):
        mask = masks.KeyPadding(lengths) & masks.SlidingWindow(100, 0)
        return maskattn_jax.attention(query, key, key, mask, kernel="blockwise").astype(jnp.float32).sum()

    with assumed("tpu"):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(*given, jax.ShapeDtypeStruct((2,), jnp.int32))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert (
            "never run on a TPU"
            in maskattn_jax.explain(
                *(jnp.zeros(x.shape, x.dtype) for x in (given[0], given[1], given[1])), masks.Causal(), return_lse=True
            )[1]
        )
    assert "while" in text and "custom_call" not in text
    types = {tuple(map(int, found[:-1].split("x"))) for found in re.findall(r"tensor<((?:\d+x)+)", text)}
    assert not [shape for shape in types if 1024 in shape and 1280 in shape]
