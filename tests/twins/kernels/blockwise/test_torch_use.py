"""The blockwise kernel of the PyTorch twin in use: garbage that is masked out, plans that are kept, compilers, vmap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint

import maskattn_torch
from maskattn import biases, masks, standards
from maskattn._fields import data
from maskattn.cache._stored_bias import StoredBias
from maskattn_torch.kernels.blockwise import flash, patches, walk


def tensors(length=200, batch=2, heads=4, kv_heads=2, width=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def run(arrays, mask, kernel="blockwise", extra=(), **options):
    """Output, log-sum-exp, and the gradients of arrays and of `extra`."""
    output, lse = maskattn_torch.attention(*arrays, mask, kernel=kernel, return_lse=True, **options)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output, lse, *torch.autograd.grad(output, [*arrays, *extra], cotangent)]


def same(first, second):
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def close(first, second):
    """Within the suite's limit of a float32 result of about this size (some are 0 but for rounding)."""
    sizes = [8 * max(1.0, float(y.detach().abs().max())) for y in second]
    limits = [standards.tier2_limit("float32", size, 8.0, 512) for size in sizes]
    return all(bool(((x - y).abs() <= limit).all()) for x, y, limit in zip(first, second, limits, strict=True))


PADDED = masks.KeyPadding([130, 65]) & masks.Causal()


@pytest.mark.parametrize("bias", [None, biases.ALiBi(4)], ids=["sdpa", "products"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e38])
def test_keys_that_nothing_reaches_may_hold_anything(garbage, bias):
    """Forward and backward the bits are those without garbage: in padding within a rectangle and beyond it."""
    for mask in (PADDED, masks.KeyMask(np.arange(200)[None] % 3 > 0), masks.Dense(PADDED.dense(200, 200))):
        clean, dirty = tensors(), tensors()
        dead = torch.as_tensor(~mask.dense(200, 200, 2, 1).any((1, 2)))
        for x in dirty[1:]:
            x.data[dead] = garbage
        assert same(run(clean, mask, bias=bias), run(dirty, mask, bias=bias))


@pytest.mark.parametrize("policy", ["zero", "nan"])
def test_queries_that_reach_nothing_may_hold_anything(policy):
    mask = masks.QueryMask(np.arange(200)[None] % 5 > 0) & masks.SlidingWindow(20)
    clean, dirty = tensors(), tensors()
    dirty[0].data[:, ::5] = math.nan
    results = run(clean, mask, empty_rows=policy), run(dirty, mask, empty_rows=policy)
    empty = results[0][0][:, ::5]
    assert bool((empty.isnan() if policy == "nan" else empty == 0).all())
    assert all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(*results, strict=True))
    assert not any(x.isnan().any() for x in results[1][2:])


def test_a_bias_of_minus_infinity_hides_too():
    forbidden = torch.zeros(200, 200).index_fill_(1, torch.arange(150, 200), -math.inf)
    clean, dirty = tensors(), tensors()
    for x in dirty[1:]:
        x.data[:, 150:] = math.nan
    assert same(run(clean, masks.Causal(), bias=forbidden), run(dirty, masks.Causal(), bias=forbidden))


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (1, 200, 1), (200,), (2, 1, 200, 200), (2, 4, 200, 200)])
@pytest.mark.parametrize("mask", [None, masks.SlidingWindow(30), masks.Strided(50)])
def test_gradients_of_a_dense_bias(shape, mask):
    # a sum over many pairs cancels: in float64, held to float32's limit
    bias = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape).requires_grad_()
    arrays = tensors(dtype=torch.float64)
    found = run(arrays, mask, bias=bias, extra=[bias], blocks=(64, 64))
    assert close(found, run(arrays, mask, "reference", bias=bias, extra=[bias]))


@pytest.mark.parametrize("heads", [1, 4])
def test_gradients_of_slopes_and_tables(heads):
    arrays = tensors()
    slopes, table = torch.rand(heads).requires_grad_(), torch.randn(32, heads).requires_grad_()
    for array, bias in ((slopes, biases.ALiBi(heads, slopes)), (table, biases.T5Buckets(table))):
        found = run(arrays, PADDED, bias=bias, extra=[array])
        assert close(found, run(arrays, PADDED, "reference", bias=bias, extra=[array]))


@dataclass(frozen=True)
class Learned(biases.Bias):
    """A bias that the library does not know."""

    level: object = data()

    def values(self, b, h, q, k):
        return self.level * (q == k)


def test_what_it_cannot_run_is_refused_by_name():
    arrays = tensors(20)
    with pytest.raises(ValueError, match='(?s)"mean" averages all values.*Learned.level requires a gradient'):
        level = torch.tensor(0.5, requires_grad=True)
        maskattn_torch.attention(*arrays, bias=Learned(level), empty_rows="mean", kernel="blockwise")
    found = run(arrays, None, bias=Learned(torch.tensor(0.5)))
    assert close(found, run(arrays, None, "reference", bias=Learned(torch.tensor(0.5))))


def test_a_table_within_a_bias_has_its_gradient():
    """Of a step of decoding, whose bias is that of whole sequences, read at the tokens in the slots."""
    places = torch.arange(20)[None]
    found = []
    for kernel in ("auto", "reference"):
        table = torch.linspace(-1, 1, 128).reshape(32, 4).requires_grad_()
        bias = StoredBias(biases.T5Buckets(table), places, places)
        maskattn_torch.attention(*tensors(20), bias=bias, kernel=kernel).square().sum().backward()
        found.append(table.grad)
    assert found[1].any() and torch.allclose(*found, atol=standards.value("same.gradient"))
    with pytest.raises(ValueError, match="StoredBias.part requires a gradient"):
        maskattn_torch.attention(*tensors(20), bias=bias, kernel="blockwise")


def test_a_plan_is_that_of_the_values_now():
    """Plans are kept by the values of a mask's data, which may be changed in place."""
    arrays, lengths = tensors(), torch.tensor([200, 150])
    mask = masks.KeyPadding(lengths)
    run(arrays, mask)
    lengths[:] = torch.tensor([3, 77])
    assert close(run(arrays, mask), run(arrays, mask, "reference"))


def test_patches_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(patches, "_KEPT", type(patches._KEPT)())
    monkeypatch.setattr(patches, "_ALL_BYTES", 1 << 18)
    arrays = [x.detach() for x in tensors()]
    for width in range(20):
        maskattn_torch.attention(*arrays, masks.SlidingWindow(width), kernel="blockwise")
    assert 0 < len(patches._KEPT) < 20
    assert sum(found.bytes for found in patches._KEPT.values()) <= 1 << 18


@pytest.mark.parametrize("mask", [PADDED, masks.SlidingWindow(9)])
def test_a_mask_that_is_not_kept_is_made_again(mask, monkeypatch):
    kept = run(tensors(), mask)
    monkeypatch.setattr(patches, "_KEPT", type(patches._KEPT)())
    monkeypatch.setattr(patches, "_CALL_BYTES", 0)
    monkeypatch.setattr(patches, "_DATA_BYTES", 0)
    assert same(kept, run(tensors(), mask))


def test_without_sdpas_operators(monkeypatch):
    """They are no part of PyTorch's stable interface: where they are missing, or differ, products take their place."""
    expected = run(tensors(), PADDED)
    monkeypatch.setattr(flash, "available", lambda: False)
    monkeypatch.setattr(flash, "forward", None)
    assert close(run(tensors(), PADDED), expected)


def test_the_operators_are_tried_before_they_are_used(monkeypatch):
    assert flash.available()
    forward = flash.forward
    flash.available.cache_clear()
    try:
        monkeypatch.setattr(flash, "forward", lambda *a: (forward(*a)[0] * 2, forward(*a)[1]))
        assert not flash.available()
    finally:
        flash.available.cache_clear()


def test_odd_layouts_and_lengths_of_0():
    q, k, v = (x.detach() for x in tensors(64))
    expected = maskattn_torch.attention(q, k, v, masks.Causal(), kernel="blockwise")
    strange = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    assert torch.equal(maskattn_torch.attention(*strange, masks.Causal(), kernel="blockwise"), expected)
    wide = [torch.stack([x, x + 1], 2)[:, :, 0] for x in (q, k, v)]
    assert torch.equal(maskattn_torch.attention(*wide, masks.Causal(), kernel="blockwise"), expected)
    for q_len, kv_len in ((0, 64), (64, 0)):
        parts = [x[:, :n].clone().requires_grad_() for x, n in zip((q, k, v), (q_len, kv_len, kv_len), strict=True)]
        output, lse, *gradients = run(parts, masks.Causal())
        assert not output.any() and bool((lse == -math.inf).all()) and not any(g.any() for g in gradients)


def attend(q, k, v, lengths, slopes):
    mask = masks.Causal() & masks.KeyPadding(lengths)
    return maskattn_torch.attention(q, k, v, mask, bias=biases.ALiBi(4, slopes), kernel="blockwise")


# PyTorch's compiler instantiates torch.autograd.Function itself, and then warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_inside_a_compiled_model():
    """One graph, for any lengths: the plan is made when it runs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of the tests before
    arrays, slopes = tensors(70), torch.rand(4).requires_grad_()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for lengths in (torch.tensor([50, 64]), torch.tensor([3, 70])):
        results = []
        for function in (attend, compiled):
            output = function(*arrays, lengths, slopes)
            results.append([output, *torch.autograd.grad(output.square().sum(), [*arrays, slopes])])
        assert same(*results)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


INFERENCE = {
    "no mask": (None, {}),
    "no data": (masks.SlidingWindow(64), {}),
    "data": (PADDED, {}),
    "twice data": (masks.KeyPadding([130, 65]) & masks.QueryMask(np.arange(130)[None] % 3 > 0), {}),
    "softcap": (masks.Causal(), {"softcap": 50.0}),
    "sinks": (PADDED, {"sinks": torch.linspace(-1, 1, 4)}),
    "log-sum-exp": (masks.Causal(), {"return_lse": True}),
    "biases": (PADDED, {"bias": biases.ALiBi(4, torch.rand(4)), "softcap": 3.0}),
    "dropout": (masks.Causal(), {"dropout_rate": 0.3, "dropout_key": 5}),
}


def inference():
    """Each with each kernel; "auto", which takes the same one for most, is quick with two."""
    yield from ((name, "blockwise") for name in INFERENCE)
    for name in INFERENCE:
        quick = name in ("no mask", "data")
        yield pytest.param(name, "auto", marks=[] if quick else [pytest.mark.slow])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("name", "kernel"), list(inference()))
def test_inside_a_compiled_model_that_wants_no_gradient(name, kernel):
    torch._dynamo.reset()
    arrays, (mask, options) = tensors(130), INFERENCE[name]
    # NumPy's arrays outside of what is compiled are beyond PyTorch's compiler in inference mode
    mask = None if mask is None else maskattn_torch.lower.bind(mask)

    def function(*arrays):
        result = maskattn_torch.attention(*arrays, mask, kernel=kernel, **options)
        return result if isinstance(result, tuple) else (result,)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert same(compiled(*arrays), function(*arrays))
    fixed = [x.detach() for x in arrays]
    assert same(compiled(*fixed), function(*fixed))
    found, expected = (torch.autograd.grad(f(*arrays)[0].sum(), arrays) for f in (compiled, function))
    assert same(found, expected)


def test_vmap_and_grad():
    arrays = [torch.stack([x.detach() + i for i in range(3)]) for x in tensors(20)]
    lengths = torch.tensor([[3, 4], [20, 6], [7, 10]])

    def loss(q, k, v, lengths):
        return maskattn_torch.attention(q, k, v, masks.KeyPadding(lengths), kernel="blockwise").sin().sum()

    mapped = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*arrays, lengths)
    for i in range(3):
        alone = torch.func.grad(loss, argnums=(0, 1, 2))(*(x[i] for x in arrays), lengths[i])
        assert same([x[i] for x in mapped], alone)


WIDE = {"dtype": torch.float64, "requires_grad": True}
LEARNED = {
    "no options": lambda: {},
    "softcap": lambda: {"softcap": 5.0},
    "sinks": lambda: {"sinks": torch.linspace(-1, 1, 2, **WIDE)},
    "bias": lambda: {"bias": torch.linspace(-1, 1, 36, **WIDE).reshape(6, 6)},
    "log-sum-exp": lambda: {"return_lse": True},
}
ARRAYS = masks.Causal() & masks.KeyPadding([6]) & masks.QueryMask(np.arange(6)[None] != 3)
TWICE = {
    "hessian": torch.autograd.functional.hessian,
    "hvp": lambda f, x: torch.autograd.functional.hvp(f, x, torch.ones_like(x)),
    "vhp": lambda f, x: torch.autograd.functional.vhp(f, x, torch.ones_like(x)),
    "grad of grad": lambda f, x: torch.autograd.grad(once(f, x).sum(), x),
    "backward": lambda f, x: once(f, x).square().sum().backward(),
    "torch.func": lambda f, x: torch.func.grad(lambda y: torch.func.grad(f)(y).sum())(x),
    "vmap": lambda f, x: torch.vmap(torch.func.grad(lambda y: torch.func.grad(f)(y).sum()))(x[None]),
    "jacrev": lambda f, x: torch.func.jacrev(torch.func.grad(f))(x),
}


BOTH = ("blockwise", "reference")


def agree(found, expected):
    """Whether all of them, what is NaN too, are equal but for rounding."""
    found, expected = ([x] if isinstance(x, torch.Tensor) or x is None else x for x in (found, expected))
    limit = standards.value("same.second") * standards.eps("float64")
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            largest = max(1.0, float(other.detach().abs().max()))
            torch.testing.assert_close(one, other, rtol=limit, atol=limit * largest)
    return True


def once(f, x):
    return torch.autograd.grad(f(x), x, create_graph=True)[0]


def cubic(y):
    return y.pow(3).sum()


def linear(y):
    return y.sum()


OTHERS = (None, masks.SlidingWindow(3))


@pytest.mark.parametrize("way", TWICE)
@pytest.mark.parametrize(
    ("loss", "given"),
    [(linear, (*OTHERS, ARRAYS)), (cubic, (ARRAYS,)), pytest.param(cubic, OTHERS, marks=pytest.mark.slow)],
    ids=["linear", "cubic", "cubic-others"],
)
def test_second_derivatives_are_those_of_the_formula(way, loss, given):
    """Whatever else depends on x: else the rest of the derivative would pass for the whole."""
    x = torch.linspace(-1, 1, 24, **WIDE).reshape(1, 6, 2, 2)
    for mask in given:
        for made in LEARNED.values():
            options = made()

            def f(x, kernel, mask=mask, options=options):
                result = maskattn_torch.attention(x, x, x, mask, kernel=kernel, **options)
                return x.pow(3).sum() + sum(map(loss, result if isinstance(result, tuple) else [result]))

            found, expected = (TWICE[way](lambda x, kernel=kernel: f(x, kernel), x) for kernel in BOTH)
            assert agree(found, expected)


@pytest.mark.parametrize("name", LEARNED)
def test_second_derivatives_between_any_two_inputs(name):
    found = []
    for kernel in BOTH:
        inputs = [torch.linspace(-1, n, 24, **WIDE).reshape(1, 6, 2, 2) for n in (1, 2, 3)]
        options = LEARNED[name]()
        result = maskattn_torch.attention(*inputs, ARRAYS, kernel=kernel, **options)
        outputs = result if isinstance(result, tuple) else (result,)
        inputs += [x for x in options.values() if isinstance(x, torch.Tensor)]
        given = [torch.ones_like(x).requires_grad_() for x in outputs]
        plain = torch.autograd.grad(outputs, inputs, given, retain_graph=True)
        first = torch.autograd.grad(outputs, inputs, given, create_graph=True)
        assert same(plain, first)
        pairs = [(gradient.square().sum(), x) for gradient in first for x in (*inputs, *given)]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        found.append([torch.autograd.grad(*pair, **options)[0] for pair in pairs])
    assert agree(*found)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_second_derivatives_of_a_compiled_model_are_refused(backend):
    torch._dynamo.reset()
    x = torch.linspace(-1, 1, 24, **WIDE).reshape(1, 6, 2, 2)

    @torch.compile(fullgraph=True, backend=backend)
    def f(x):
        return x.pow(3).sum() + maskattn_torch.attention(x * 1, x * 2, x * 3, masks.Causal(), kernel="blockwise").sum()

    with pytest.raises(RuntimeError):
        once(f, x).sum().backward()


def test_autocast_changes_nothing():
    arrays = tensors()
    expected = run(arrays, PADDED, bias=biases.ALiBi(4)), run(arrays, PADDED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(run(arrays, PADDED, bias=biases.ALiBi(4)), expected[0])
        assert same(run(arrays, PADDED), expected[1])


def test_no_matrix_of_all_pairs(monkeypatch):
    """At N = 8192 a window's calls hold a few thousand keys each: nothing grows with N squared."""
    sizes = patches.PatchSizes(1, 8, 8, 8192, 8192, 64, torch.float32, None, walk._LIMITS, walk._AREA)
    for found in (
        patches.patches_of(masks.SlidingWindow(255), sizes),
        patches.patches_of(masks.Causal() & masks.SlidingWindow(1023), sizes),
    ):
        for patch in found.backward:
            piece = patch.piece
            pairs = piece.count * len(piece.batch) * len(piece.heads) * piece.rows * piece.cols
            assert pairs <= walk._AREA
            assert patch.kept is None or patch.kept.added is None or patch.kept.added.numel() <= walk._AREA // 8


@pytest.mark.parametrize("kernel", ["auto", "blockwise", "reference", "exact"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_gives_the_gradients_that_training_without_it_does(kernel, reentrant):
    """It gives what was saved once only."""

    def call(*arrays):
        return maskattn_torch.attention(*arrays, masks.SlidingWindow(3), kernel=kernel)

    given, plain = tensors(12), tensors(12)
    checkpoint(call, *given, use_reentrant=reentrant).sum().backward()
    call(*plain).sum().backward()
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(given, plain, strict=True))
