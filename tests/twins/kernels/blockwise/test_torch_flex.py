"""The blockwise kernel of the PyTorch twin as on CUDA: plans, what is compiled, how often, and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask

import maskattn_torch
from maskattn import biases, masks, standards
from maskattn.attention import Call, KernelCannot
from maskattn.parity.attention.case import Shape
from maskattn.parity.draws import Draws
from maskattn_torch.kernels.blockwise import flex
from maskattn_torch.kernels.blockwise.flex import blocks, compiled, plans, traced
from maskattn_torch.kernels.blockwise.flex.rows import bounds, reached, reaches_all

CPU = torch.device("cpu")
PADDED = masks.KeyPadding([130, 65]) & masks.Causal()


def documents(batch, length, seed=0, lowest=0):
    return np.sort(np.random.default_rng(seed).integers(lowest, 4, (batch, length)), axis=1)


def arrays(batch=2, length=200, heads=2, kv_heads=2, width=16, kv_len=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, heads, width)] + 2 * [(batch, kv_len or length, kv_heads, width)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def call(mask, given=None, bias=None, **options):
    bound = None if mask is None else maskattn_torch.lower.bind(mask)
    bias = None if bias is None else maskattn_torch.lower.bind(bias)
    return Call(*(given or arrays()), bound, bias, **{"scale": 0.25, **options})


def close(found, right):
    size = 8 * max(1.0, float(right.detach().abs().max()))
    return bool(((found - right).abs() <= standards.tier2_limit("float32", size, 8.0, 512)).all())


def quick(graph, inputs):
    """A compiler that takes no time: its results have the right ranks, and nothing else."""
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    ranks = [x.meta["example_value"].ndim for x in outputs]
    return lambda *given: [torch.zeros([1] * rank) for rank in ranks]


@pytest.fixture
def anew(monkeypatch):
    """Nothing is compiled yet, and no plan kept."""
    monkeypatch.setattr(plans, "_KEPT", type(plans._KEPT)())
    monkeypatch.setattr(plans, "_OF_DATA", type(plans._OF_DATA)())
    monkeypatch.setattr(plans, "_SEEN", type(plans._SEEN)())
    monkeypatch.setattr(flex, "KERNELS", compiled.Compiled())
    monkeypatch.setattr(plans, "KERNELS", flex.KERNELS)
    torch._dynamo.reset()
    counters.clear()
    return flex.KERNELS


@pytest.fixture
def counted(anew, monkeypatch):
    """The same, and compiling takes no time."""
    monkeypatch.setattr(compiled, "BACKEND", quick)
    return anew


@pytest.fixture
def dense(anew, monkeypatch):
    """What is compiled elsewhere runs as it is: FlexAttention makes all scores then."""
    monkeypatch.setattr(flex, "KERNELS", lambda kind, function, arrays, *rest: function(*arrays, *rest))
    monkeypatch.setattr(traced, "refuse_uncompiled", lambda: None)
    monkeypatch.setattr(flex, "_gives_lse", lambda query: True)


WITH_ROWS = (
    *(masks.BlockCausal, masks.Causal, masks.Chunked, masks.Empty, masks.KeyMask, masks.KeyPadding, masks.PerHead),
    *(masks.PrefixLM, masks.QueryMask, masks.Segments, masks.SlidingWindow),
)
inductor = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
uncompiled = pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile:UserWarning")


def graphs():
    return counters["stats"]["unique_graphs"]


# ---------------------------------------------------------------- plans


def same_blocks(tables, other):
    for num, indices in (("kv_num_blocks", "kv_indices"), ("q_num_blocks", "q_indices")):
        for full in ("", "full_"):
            count, order = (getattr(other, full + name) for name in (num, indices))
            place = 2 * (num[0] == "q") + (full != "")
            ours, ordered = tables[2 * place], tables[2 * place + 1]
            chosen = torch.arange(order.shape[-1]) < count[..., None]
            if not torch.equal(ours, count) or not torch.equal(ordered[chosen], order[chosen]):
                return False
    return True


def made_by_pytorch(mask, sizes):
    bound = maskattn_torch.lower.bind(mask)
    many = [n if name in mask.depends else None for name, n in zip("bh", sizes, strict=False)]
    return create_block_mask(lambda b, h, q, k: bound.allowed(b, h, q, k), *many, *sizes[2:], device="cpu")


EXACT = {
    "causal": masks.Causal(),
    "window": masks.SlidingWindow(200, 3),
    "chunks": masks.Chunked(100) & masks.Causal(),
    "padding": masks.KeyPadding([400, 77]),
    "prefix": masks.PrefixLM([3, 300]),
    "documents": masks.Segments(documents(2, 513)) & masks.Causal(),
    "padded documents": masks.Segments(documents(2, 513, lowest=-1)),
    "queries": masks.QueryMask(documents(2, 513) > 1) & masks.Causal(),
    "heads": masks.PerHead([masks.Causal(), masks.SlidingWindow(100), masks.KeyPadding([300, 4])]),
    "any": masks.SlidingWindow(9) | masks.PrefixLM([4, 200]),
    "strided": masks.Strided(200),
    "none": masks.Empty(),
    "dense": masks.Dense(documents(1, 513)[0, None, :] > documents(1, 513, 1)[0, :, None]),
}


@pytest.mark.parametrize("name", EXACT)
def test_blocks_are_those_of_create_block_mask(name, anew):
    mask, sizes = EXACT[name], (2, 3, 513, 513)
    found = plans.planned(call(mask, arrays(2, 513, 3, 3)))
    assert same_blocks(found.tables, made_by_pytorch(mask, sizes))


@pytest.mark.parametrize("cls", WITH_ROWS, ids=lambda cls: cls.__name__)
def test_plans_never_lose_a_pair(cls, anew, monkeypatch):
    """Of every example: empty blocks are empty, full ones full, and what is asked elsewhere is the mask."""
    monkeypatch.setattr(blocks, "BLOCK", 4)
    shape = Shape(3, 11, 11, 4, 2, 8, 8)
    for seed in range(4):
        for mask in cls.examples(shape, Draws(seed)):
            bound = maskattn_torch.lower.bind(mask & masks.SlidingWindow(6, 5))
            found = bounds(bound, shape.scores, CPU)
            allowed = torch.nn.functional.pad(maskattn_torch.lower.to_dense(bound, 11, 11, 3, 4), (0, 1, 0, 1))
            tiles = allowed.view(3, 4, 3, 4, 3, 4).movedim(3, 4)
            partial, every = (
                torch.zeros(*tables.shape, dtype=torch.bool).scatter(
                    -1, tables.long(), torch.arange(tables.shape[-1]) < count[..., None]
                )
                for count, tables in (blocks.from_bounds(found, 11)[n : n + 2] for n in (0, 2))
            )
            some, whole = tiles.any(-1).any(-1), tiles.all(-1).all(-1)
            assert bool((every.expand_as(whole) == whole).all())
            assert bool((partial | every >= some).all())
            assert bool((reached(found, bound, shape.scores) >= allowed[..., :11, :11].any(2).any(1)).all())


@pytest.mark.parametrize("name", EXACT)
def test_keys_that_are_reached(name, anew):
    mask, given = EXACT[name], call(EXACT[name], arrays(2, 513, 3, 3))
    found = plans.planned(given).reached
    expected = torch.as_tensor(mask.dense(513, 513, 2, 3)).any(2).any(1)
    assert bool(expected.all() if found is None else (found == expected).all())


def test_masks_that_reach_every_key_are_known():
    sizes = (1, 1, 9, 9)
    assert reaches_all(masks.Causal() & masks.SlidingWindow(2) & masks.Chunked(4), sizes)
    for mask in (masks.Causal(-1), masks.KeyPadding([9]), masks.Causal() & masks.Strided(2), masks.Causal()):
        assert not reaches_all(mask, sizes if mask != masks.Causal() else (1, 1, 8, 9))


def test_a_plan_is_shared_until_its_data_change(anew):
    """The layers of a step share one; other tensors, and the same ones changed in place, have another."""
    ids, given = torch.as_tensor(documents(2, 200)), arrays()
    first = plans.planned(call(masks.Segments(ids), given))
    assert plans.planned(call(masks.Segments(ids), given)) is first
    assert plans.planned(call(masks.Segments(ids.clone()), given)) is not first
    assert plans.planned(call(masks.Segments(ids) & masks.Causal(), given)) is not first
    same = call(masks.Segments(ids), given)
    assert plans.planned(same) is first
    ids[:, 100:] = 7
    assert plans.planned(same) is not first  # of the very same object, too
    changed = plans.planned(call(masks.Segments(ids), given))
    assert changed is not first and same_blocks(changed.tables, made_by_pytorch(masks.Segments(ids), (2, 2, 200, 200)))
    assert plans.planned(call(masks.Causal(), given)) is plans.planned(call(masks.Causal(), arrays(5, heads=3)))
    many = [torch.as_tensor(documents(2, 200, seed)) for seed in range(20)]
    for seed, ids in enumerate(many):
        plans.planned(call(masks.Segments(ids), given))
        plans.planned(call(masks.SlidingWindow(seed), given))
        for width in range(10 * seed, 10 * seed + 10):
            plans.planned(call(masks.Causal(width), arrays(1, 5)))
    assert len(plans._OF_DATA) == plans._MOVING and len(plans._KEPT) == plans._STILL


def test_a_plan_does_not_keep_data_alive_or_take_other_data_for_it(anew):
    given = arrays()
    keep = torch.rand(2, 200) > 0.5
    mask = masks.Causal() | masks.KeyMask(keep)
    plans.planned(call(mask, given))
    alive = [ref() for kept in plans._OF_DATA.values() for ref in kept.data]
    assert alive[0] is keep
    del alive, keep, mask
    gc.collect()
    assert not plans._OF_DATA and not len(plans._SEEN)


@dataclasses.dataclass
class Before(masks.Mask):
    """A mask of a user's, whose field may change."""

    end: int

    def allowed(self, b, h, q, k):
        return k < self.end

    def tile(self, b, h, q_lo, q_hi, k_lo, k_hi):
        return k_lo < self.end, k_hi < self.end


def test_a_mask_whose_field_changes_is_planned_again(anew):
    changing = Before(5)
    for mask in (changing, changing & masks.Causal()):
        changing.end = 5
        before = plans.planned(call(mask))
        changing.end = 200
        assert plans.planned(call(mask)).tables.kv_num.sum() > before.tables.kv_num.sum()
    lasting = masks.Causal() | masks.Strided(3)
    assert plans.planned(call(lasting)) is plans.planned(call(lasting)) and lasting in plans._SEEN


def test_data_made_in_inference_mode_are_planned_each_time(anew):
    """Nobody sees when they are changed."""
    with torch.inference_mode():
        lengths = torch.tensor([200, 3])
        first = plans.planned(call(masks.KeyPadding(lengths)))
        lengths[:] = 50
        assert not torch.equal(plans.planned(call(masks.KeyPadding(lengths))).bounds.high, first.bounds.high)
    assert not first.tables.kv_indices.is_inference()


# ---------------------------------------------------------------- numbers

MASKS = [None, PADDED, masks.SlidingWindow(9) | masks.PrefixLM(4), masks.Segments(documents(2, 200, lowest=-1))]


@uncompiled
@pytest.mark.parametrize("mask", MASKS)
def test_what_a_gpu_is_given(mask, dense):
    """FlexAttention's uncompiled form runs on the CPU, with the blocks and the functions that a GPU gets."""
    q, k, v = arrays(heads=4)
    if mask == PADDED:
        for x in (k, v):
            x[1, 65:] = math.nan
    sinks = torch.linspace(-1, 1, 4)
    table, added = torch.randn(32, 4), torch.randn(1, 4, 200, 1)
    added_to = [biases.ALiBi(4), biases.T5Buckets(table), biases.DenseBias(added)]
    for options in ({}, {"softcap": 3.0, "bias": added_to[0]}, *({"bias": bias} for bias in added_to[1:])):
        found = flex.attention(call(mask, [q, k, v], **options), sinks)
        right = maskattn_torch.attention(
            q, k, v, mask, sinks=sinks, scale=0.25, kernel="reference", return_lse=True, **options
        )
        assert all(close(x, y) for x, y in zip(found, right, strict=True))


@uncompiled
def test_narrow_heads_are_padded(dense):
    q, k, _ = arrays(width=6)
    v = arrays(width=3)[2]
    found, _ = flex.attention(call(masks.Causal(), [q, k, v]), None)
    assert found.shape == v.shape and close(found, maskattn_torch.attention(q, k, v, masks.Causal(), scale=0.25))


@inductor
def test_one_kernel_serves_every_mask_of_rows(anew):
    """Compiled for the CPU: the numbers of causal masks and windows are those of the formula, by one graph."""
    for mask in (masks.Causal(), masks.SlidingWindow(20, 3), masks.Chunked(50) & masks.Causal(), masks.BlockCausal(64)):
        given = call(mask)
        right = maskattn_torch.attention(given.query, given.key, given.value, mask, scale=0.25, kernel="reference")
        assert close(flex.attention(given, None)[0], right)
    assert anew.counts == {"compiled": 1} and graphs() == 1


@inductor
@pytest.mark.slow
def test_data_and_lengths_of_any_size_by_one_kernel(anew, monkeypatch):
    monkeypatch.setattr(compiled, "SIZES", 0)
    for length in (300, 515, 260):
        for mask in (
            masks.Segments(documents(2, length)) & masks.Causal(),
            masks.Segments(documents(2, length, 1, lowest=-1)) & masks.SlidingWindow(100, 100),
        ):
            given = call(mask, arrays(2, length))
            right = maskattn_torch.attention(given.query, given.key, given.value, mask, scale=0.25, kernel="reference")
            assert close(flex.attention(given, None)[0], right)
    assert graphs() == 1


# ---------------------------------------------------------------- what is compiled


def structures(batch, length, seed=0):
    """Twelve masks, with new data."""
    random = np.random.default_rng(seed)
    ids = np.sort(random.integers(-1, 4, (batch, length)), axis=1)
    keep, ends = random.random((batch, length)) < 0.7, random.integers(1, length, batch)
    return [
        masks.Causal(),
        masks.SlidingWindow(length // 3),
        masks.SlidingWindow(int(random.integers(0, 50)), 3),
        masks.Chunked(50) & masks.Causal(),
        masks.PrefixLM(ends),
        masks.KeyPadding(ends) & masks.Causal(),
        masks.QueryMask(keep) & masks.KeyPadding(ends),
        masks.Segments(ids),
        masks.Segments(ids) & masks.Causal() & masks.KeyMask(keep),
        masks.Strided(3),
        masks.SlidingWindow(9) | masks.PrefixLM(ends),
        masks.KeyMask(keep) | masks.Causal(),
    ]


def test_twelve_masks_at_twenty_lengths_compile_nothing_after_the_first(counted, monkeypatch):
    monkeypatch.setattr(compiled, "SIZES", 1)

    def step(length, seed):
        for mask in structures(2, length, seed):
            flex.attention(call(mask, arrays(2, length)), None)

    for length in (300, 200):  # as many blocks as rows in the batch: that they are equal is no condition
        step(length, 0)
    assert 0 < graphs() == counted.counts["compiled"] <= 12
    before = graphs()
    for seed, length in enumerate(range(129, 129 + 20 * 31, 31), 1):
        step(length, seed)
    assert graphs() == before and counted.counts["dropped"] == 0


def test_new_documents_each_step_compile_nothing(counted):
    generator = torch.Generator().manual_seed(0)
    given = arrays(1, 130, 1, 1)
    for step in range(1000):
        ids = torch.sort(torch.randint(-1, 5, (1, 130), generator=generator), 1).values
        flex.attention(call(masks.Segments(ids) & masks.Causal(), given), None)
        assert graphs() == 1, step


def test_sizes_and_layouts_are_bounded(counted):
    """Three sizes have kernels of their own, in two layouts; all others share one."""
    for length in (300, 301, 302, 303, 304, 305):
        flex.attention(call(masks.Causal(), arrays(2, length)), None)
    assert graphs() == compiled.SIZES + 1 == len(counted)
    for _ in range(2):  # parts of one array, queries of a cache
        whole = torch.randn(2, 306, 3, 2, 16)
        flex.attention(call(masks.Causal(), list(whole.unbind(2))), None)
        flex.attention(call(masks.Causal(), [x[:, :290] for x in arrays(2, 310)]), None)
    assert graphs() == compiled.SIZES + 1


def test_every_mode_has_a_kernel_of_its_own(counted):
    given = call(masks.Causal())
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        for scale in (0.25, 0.5):
            with mode():
                flex.attention(dataclasses.replace(given, scale=scale), None)
                flex.attention(dataclasses.replace(given, scale=scale), None)
    assert graphs() == len(counted) == 6


def test_kernels_are_bounded_and_the_last_used_stay(counted, monkeypatch):
    monkeypatch.setattr(compiled, "MOST", 3)

    def run(scale):
        flex.attention(call(masks.Causal(), scale=scale), None)

    for scale in (1.0, 2.0, 3.0, 1.0):
        run(scale)
    with pytest.warns(UserWarning, match="3 FlexAttention kernels are compiled.*differ in scale"):
        run(4.0)
    run(5.0)
    assert counted.counts == {"compiled": 5, "dropped": 2} and len(counted) == 3
    run(4.0)
    run(1.0)
    assert counted.counts["compiled"] == 5 == graphs()
    run(2.0)  # dropped, and compiled again
    assert counted.counts["compiled"] == 6
    assert flex.is_new(call(masks.Causal(), scale=7.0)) and not flex.is_new(call(masks.Causal(), scale=2.0))
    assert flex.is_new(call(masks.Causal(), scale=5.0)) and len(counted._sizes) == 3  # nothing is kept of the dropped


def test_threads_compile_a_kernel_once(counted, monkeypatch):
    started = threading.Barrier(3)

    def slow(graph, inputs):
        time.sleep(0.2)
        return quick(graph, inputs)

    def run():
        started.wait()
        flex.attention(call(masks.Causal()), None)

    monkeypatch.setattr(compiled, "BACKEND", slow)
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.counts["compiled"] == 1 == len(counted)


def test_that_it_compiles_is_said_once(counted, caplog):
    with caplog.at_level(logging.INFO, "maskattn_torch"):
        for scale in (1.0, 2.0):
            flex.attention(call(masks.Causal(), scale=scale), None)
    assert ["compile_flex" in record.message for record in caplog.records if record.name == "maskattn_torch"] == [True]


# ---------------------------------------------------------------- never dense


def test_what_is_not_compiled_is_an_error(counted):
    given = call(masks.Causal())
    with torch._dynamo.config.patch(disable=True):
        assert "TORCHDYNAMO_DISABLE" in flex.unsupported(given)[0]
        with pytest.raises(KernelCannot, match="did not compile FlexAttention"):
            flex.attention(given, None)
    for stance in ("force_eager", "eager_on_recompile"):
        with torch.compiler.set_stance(stance):
            assert stance in flex.unsupported(given)[0]
            with pytest.raises(KernelCannot, match="did not compile FlexAttention"):
                flex.attention(given, None)
    assert flex.unsupported(given) == []


def test_the_limit_of_recompilations_is_an_error(counted):
    """Something that is no part of a kind changes: PyTorch's limit is met, and the error is ours."""
    given, kind = call(masks.Causal()), compiled.Kind("test", None)

    def function(x, options):
        compiled.refuse_uncompiled()
        return (x * len(options["a"]),)

    with torch._dynamo.config.patch(recompile_limit=2):
        for n in (1, 2):
            counted(kind, function, (given.query,), {"a": [0] * n})
        with pytest.raises(KernelCannot, match="compiles no more FlexAttention kernels of Kind.what='test'"):
            counted(kind, function, (given.query,), {"a": [0] * 3})


def test_what_fails_to_compile_is_an_error(counted, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such register")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(flex.CompileFailed, match="could not be compiled for Kind.*no such register"):
        flex.attention(call(masks.Causal()), None)
    assert len(counted) == 0


def test_in_a_users_compiled_function_it_is_a_part_of_that(anew):
    """One graph, theirs; nothing of ours is compiled beside it."""
    seen = []

    def backend(graph, inputs):
        seen.append(str(graph.code))
        return quick(graph, inputs)

    ids, given = torch.as_tensor(documents(2, 200)), arrays()

    @torch.compile(backend=backend, fullgraph=True)
    def function(q, k, v, ids):
        mask = masks.Segments(ids) & masks.Causal()
        return flex.attention(Call(q, k, v, mask, scale=0.25), None)[0] + 1

    function(*given, ids)
    function(*given, ids.flip(0))
    assert len(seen) == 1 and "flex_attention" in seen[0] and len(anew) == 0


def test_what_a_gpu_cannot_run_is_refused_by_name():
    empty = torch.zeros(0, dtype=torch.float64)
    reasons = flex.unsupported(Call(empty, empty, empty, dropout_rate=0.5))
    assert [x.partition(":")[0] for x in reasons] == ["dropout", "float64", "FlexAttention takes no empty tensors"]
    wide = torch.zeros(1, 2, 1, 257)
    assert ["257" in reason for reason in flex.unsupported(Call(wide, wide, wide))] == [True, True]
    found = []
    torch.vmap(lambda x: found.append(flex.unsupported(Call(x, x, x))) or x)(torch.zeros(2, 1, 3, 1, 16))
    assert "torch.func" in found[0][0]
