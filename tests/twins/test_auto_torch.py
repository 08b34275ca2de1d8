"""PyTorch on CUDA, with tensors that seem to be there: what kernel="auto" chooses, and that nothing waits."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import unset_fake_temporarily

import maskattn_torch
from maskattn import biases, masks
from maskattn.attention import Call, KernelCannot
from maskattn_torch import _hosted, _short, auto
from maskattn_torch.kernels import fused, reference
from maskattn_torch.kernels.blockwise import flex
from maskattn_torch.kernels.blockwise.flex import plans, scores
from tests.fake_cuda import NoWaiting, fake_cuda

LARGE, SMALL, LONG = 4096, 64, 1 << 17


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """A GPU whose kernels can be compiled."""
    monkeypatch.setattr(flex, "_has_triton", lambda: True)
    monkeypatch.setattr(auto, "_GIVEN_UP", [])
    with fake_cuda():
        yield


def arrays(length, kv_len=None, batch=2, heads=16, kv_heads=None, width=128, dtype=torch.bfloat16, v_width=None):
    shapes = [(length, heads, width)] + [(kv_len or length, kv_heads or heads, n) for n in (width, v_width or width)]
    return [torch.empty(batch, *shape, device="cuda", dtype=dtype) for shape in shapes]


def chosen(given, mask=None, **options):
    return maskattn_torch.explain(*given, mask, **options)[0]


def ids(length, batch=2):
    return torch.empty(batch, length, dtype=torch.int64, device="cuda")


PLAIN = [None, masks.Full(), masks.Causal()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("precision", ["highest", "high", "default"])
@pytest.mark.parametrize("mask", PLAIN, ids=repr)
def test_sdpa_does_what_needs_no_mask_at_any_length(mask, dtype, precision):
    for length in (SMALL, LARGE, LONG):
        assert chosen(arrays(length, dtype=dtype), mask, precision=precision) == "fused"
        assert chosen(arrays(length, 2 * length, kv_heads=4, dtype=dtype), mask, precision=precision) == "fused"


def test_masks_of_small_calls_are_dense_and_of_large_ones_tiles():
    for mask in (
        masks.Causal() & masks.SlidingWindow(1024),
        masks.Chunked(512),
        masks.PrefixLM(7),
        masks.Causal(3),
        masks.Strided(2) | masks.SlidingWindow(3),
    ):
        assert [chosen(arrays(n), mask) for n in (SMALL, LARGE, LONG)] == ["fused", "blockwise", "blockwise"]
        assert chosen(arrays(LARGE, dtype=torch.float32), mask) == "blockwise"
    for n, kernel in ((SMALL, "fused"), (LARGE, "blockwise")):
        for mask in (
            masks.Segments(ids(n)) & masks.Causal(),
            masks.KeyPadding(ids(n)[:, 0]),
            masks.KeyMask(ids(n) > 0),
        ):
            assert chosen(arrays(n), mask) == kernel
        for bias in (biases.ALiBi(16), biases.T5Buckets(torch.empty(32, 16, device="cuda"))):
            assert chosen(arrays(n), masks.Causal(), bias=bias) == kernel


def test_decoding_is_small():
    assert chosen(arrays(1, LARGE), masks.Causal(LARGE - 1)) == "fused"
    assert chosen(arrays(1, LARGE), masks.KeyPadding(ids(2)[:, 0])) == "fused"
    assert chosen(arrays(1, 1 << 16, batch=1), masks.SlidingWindow(1024).at(q_offset=ids(1)[0])) == "fused"


def test_what_sdpa_cannot_say_is_compiled_where_it_is_large():
    for options in ({"softcap": 30.0}, {"sinks": torch.empty(16, device="cuda", dtype=torch.bfloat16)}):
        assert [chosen(arrays(n), masks.Causal(), **options) for n in (SMALL, LARGE)] == ["reference", "blockwise"]
    prepared = Call(*arrays(LARGE), masks.Causal(), scale=1.0, return_lse=True)
    assert auto.choose(prepared)[0] == "blockwise"


def test_dense_and_learned_biases_stay_with_sdpa():
    """FlexAttention adds up their gradients in no fixed order."""
    dense = torch.empty(1, 16, LARGE, LARGE, device="cuda", dtype=torch.bfloat16)
    assert chosen(arrays(LARGE), masks.Causal(), bias=dense) == "fused"
    table = torch.empty(32, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    assert chosen(arrays(LARGE), masks.Causal(), bias=biases.T5Buckets(table)) == "fused"
    # in float32, beside 16-bit inputs, SDPA would make all scores
    wide = biases.T5Buckets(torch.empty(32, 16, device="cuda", requires_grad=True))
    assert chosen(arrays(LARGE), masks.Causal(), bias=wide) == "reference"
    with torch.no_grad():
        assert chosen(arrays(LARGE), masks.Causal(), bias=wide) == "blockwise"


def test_only_the_formula_has_these_and_it_does_them_in_parts():
    for options in ({"dropout_rate": 0.1, "dropout_key": 0}, {"empty_rows": "mean"}):
        for length in (SMALL, LARGE, LONG):
            assert chosen(arrays(length), masks.Causal(), **options) == "reference"
    for mask in (*PLAIN, masks.SlidingWindow(4)):  # SDPA makes all scores of float64, with or without a mask
        assert chosen(arrays(LONG, dtype=torch.float64), mask) == "reference"
        assert chosen(arrays(SMALL, dtype=torch.float64), mask) == "fused"
    for length, batch in ((SMALL, 2), (LARGE, 2), (1 << 14, 1), (LONG, 1)):
        rows = reference.rows_at_once(Call(*arrays(length, batch=batch)))
        assert rows * batch * 16 * length * 4 <= reference.AT_ONCE_BYTES
        assert (rows == length) == (length == SMALL)


def test_never_keeps_auto_from_compiling(monkeypatch):
    window = masks.Causal() & masks.SlidingWindow(1024)
    monkeypatch.setattr(maskattn_torch, "compile_flex", "never")
    assert [chosen(arrays(n), window) for n in (SMALL, LARGE)] == ["fused", "fused"]
    assert chosen(arrays(LARGE), window, softcap=3.0) == "reference"
    assert chosen(arrays(LARGE), window, kernel="blockwise") == "blockwise"
    monkeypatch.setattr(maskattn_torch, "compile_flex", "always")
    with pytest.raises(ValueError, match='compile_flex must be "auto" or "never", got \'always\''):
        chosen(arrays(LARGE), window)


def test_where_nothing_can_be_compiled_auto_takes_another(monkeypatch):
    window = masks.Causal() & masks.SlidingWindow(1024)
    monkeypatch.setattr(flex, "_has_triton", lambda: False)
    assert chosen(arrays(LARGE), window) == "fused"
    with pytest.raises(KernelCannot, match="Triton"):
        chosen(arrays(LARGE), window, kernel="blockwise")
    monkeypatch.setattr(flex, "_has_triton", lambda: True)
    assert chosen(arrays(LARGE, width=264), window) == "fused"
    with torch.compiler.set_stance("force_eager"):
        assert chosen(arrays(LARGE), window) == "fused"


def test_auto_gives_up_where_compiling_fails(monkeypatch):
    def fails(*given):
        raise flex.CompileFailed("blockwise", ["FlexAttention could not be compiled: no C compiler"])

    monkeypatch.setattr(flex, "KERNELS", fails)
    given, window = arrays(LARGE), masks.Causal() & masks.SlidingWindow(1024)
    monkeypatch.setattr(flex, "is_new", lambda call: False)
    with pytest.raises(flex.CompileFailed):
        maskattn_torch.attention(*given, window, kernel="blockwise")
    with pytest.warns(UserWarning, match='no C compiler; kernel="auto" takes other kernels from now on'):
        assert maskattn_torch.attention(*given, window).shape == given[0].shape
    assert chosen(given, window) == "fused"


def test_explain_says_that_it_compiles():
    assert (
        "compiles a kernel (some seconds) on first use" in maskattn_torch.explain(*arrays(LARGE), masks.Chunked(512))[1]
    )


def test_sdpa_refuses_nothing_by_precision():
    for dtype in (torch.bfloat16, torch.float32):
        for precision in ("highest", "high", "default"):
            call = Call(*arrays(SMALL, dtype=dtype), precision=precision)
            assert fused.unsupported(call) == []


def implementations(monkeypatch):
    """The implementations of SDPA that each call leaves open, the shapes of what it is given, and its keywords."""
    seen = []

    def sdpa(q, k, v, mask, rate, causal, **keywords):
        enabled = torch.backends.cuda
        names = ("flash", "mem_efficient", "math", "cudnn")
        open_ = {name for name in names if getattr(enabled, f"{name}_sdp_enabled")()}
        seen.append((open_, q.shape, k.shape, mask, causal, keywords))
        return q.new_empty((*q.shape[:-1], v.shape[-1]))

    monkeypatch.setattr(fused, "sdpa", sdpa)
    monkeypatch.setattr(_short, "sdpa", sdpa)
    return seen


def test_float32_is_left_to_the_implementation_with_its_digits(monkeypatch):
    seen = implementations(monkeypatch)
    window = masks.SlidingWindow(3)
    for dtype, precision in ((torch.float32, "highest"), (torch.float32, "default"), (torch.bfloat16, "highest")):
        for mask in (masks.Causal(), window):
            given = arrays(SMALL, kv_heads=4, dtype=dtype)
            maskattn_torch.attention(*given, mask, kernel="fused", precision=precision)
            open_, _, key, _, _, keywords = seen.pop()
            assert (open_ == {"mem_efficient"}) == (dtype == torch.float32 and precision != "default")
            # groups are for FlashAttention alone
            repeated = dtype == torch.float32 or mask is window
            assert (key[1] == 16) == repeated == (not keywords["enable_gqa"])


def test_wide_heads_are_no_groups(monkeypatch):
    """FlashAttention, which knows groups, takes at most 256: SDPA would make all scores."""
    seen = implementations(monkeypatch)
    for width in (256, 320):
        maskattn_torch.attention(*arrays(SMALL, kv_heads=4, width=width), masks.Causal(), kernel="fused")
        _, _, key, _, _, keywords = seen.pop()
        assert keywords["enable_gqa"] == (key[1] == 4) == (width == 256)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 8), (torch.float32, 4), (torch.float64, 1)])
def test_heads_are_padded_to_what_sdpa_wants(dtype, unit, monkeypatch):
    seen = implementations(monkeypatch)
    for width, v_width in ((16, 16), (5, 5), (5, 18), (80, 80)):
        given = arrays(SMALL, width=width, v_width=v_width, dtype=dtype)
        found = maskattn_torch.attention(*given, masks.Causal(), kernel="fused")
        _, query, _, _, _, keywords = seen.pop()
        assert found.shape[-1] == v_width and query[-1] == -(-width // unit) * unit
        assert keywords["scale"] == 1 / math.sqrt(width)


def test_causal_masks_need_none_of_sdpa(monkeypatch):
    seen = implementations(monkeypatch)
    for mask, length, kv_len in ((masks.Causal(), 8, 12), (masks.Causal(11), 8, 12), (masks.Full(), 8, 12)):
        maskattn_torch.attention(*arrays(length, kv_len), mask, kernel="fused")
        _, _, key, dense, causal, _ = seen.pop()
        assert dense is None and causal == (mask == masks.Causal()) and key[2] == (8 if causal else 12)


KERNELS = ["fused", "blockwise", "reference"]
MASKS = {
    "causal": lambda n: masks.Causal(),
    "window": lambda n: masks.Causal() & masks.SlidingWindow(5),
    "offset": lambda n: masks.Causal(-3),
    "documents": lambda n: masks.Segments(ids(n)) & masks.Causal(),
    "padding": lambda n: masks.KeyPadding(ids(n)[:, 0]),
    "padding of the host": lambda n: masks.KeyPadding([n, 3]),
    "documents of the host": lambda n: masks.Segments(np.sort(np.arange(2 * n).reshape(2, n) % 3, 1)),
    "queries and keys": lambda n: masks.QueryMask(ids(n) > 0) & masks.KeyMask(ids(n) > 1),
    "heads": lambda n: masks.PerHead([masks.Causal()] * 8 + [masks.KeyPadding(ids(n)[:, 0])] * 8),
    "other": lambda n: masks.Strided(3) | masks.KeyMask(ids(n) > 0),
    "dense": lambda n: torch.empty(2, 1, n, n, dtype=torch.bool, device="cuda"),
    "positions": lambda n: masks.Causal().with_positions(ids(n), ids(n)) & masks.Segments(ids(n)),
    "cross": lambda n: masks.Segments(ids(n), ids(n) + 1) & masks.Causal(),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kept", [False, True])
def test_nothing_waits_for_the_gpu(name, kernel, kept, monkeypatch):
    """Neither plans nor dense masks nor calls read anything back; nor does what is kept for later calls."""

    def compiled(kind, function, arrays, *rest):
        query, value = arrays[0], arrays[2]
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        return query.new_empty((*query.shape[:3], value.shape[3])), lse

    monkeypatch.setattr(flex, "KERNELS", compiled)
    monkeypatch.setattr(plans, "_KEPT", type(plans._KEPT)())
    monkeypatch.setattr(plans, "_OF_DATA", type(plans._OF_DATA)())
    monkeypatch.setattr(plans, "_SEEN", type(plans._SEEN)())
    monkeypatch.setattr(_hosted, "_HELD", type(_hosted._HELD)())
    if kept:
        for module in (plans, _hosted, scores):
            monkeypatch.setattr(module, "plain", lambda: True)
    given, mask = arrays(256), MASKS[name](256)
    scores._kept_rows.cache_clear()
    with NoWaiting():
        for options in ({}, {"bias": biases.T5Buckets(torch.empty(32, 16, device="cuda"))}, {"bias": biases.ALiBi(16)}):
            assert maskattn_torch.attention(*given, mask, kernel=kernel, **options).shape == given[0].shape
    scores._kept_rows.cache_clear()


def test_waiting_is_seen():
    x = ids(3)
    for waits in (lambda: x.cpu(), lambda: torch.zeros(3).to("cuda"), lambda: x.nonzero(), lambda: bool((x > 0).all())):
        with NoWaiting(), pytest.raises(AssertionError, match=r"waits|reads values"):
            waits()
    with NoWaiting():
        torch.zeros(3).to("cuda", non_blocking=True)


def test_a_short_call_goes_to_sdpa_at_once(monkeypatch):
    """What was found out about one serves the next; float32's implementation is chosen there, too."""
    seen, anew = implementations(monkeypatch), []
    monkeypatch.setattr(_short, "plain", lambda: True)
    monkeypatch.setattr(_short, "_PLANS", {})
    monkeypatch.setattr(_short, "_WHOLE", (type(ids(1)),))
    attend_anew = _short.attend_anew
    monkeypatch.setattr(_short, "attend_anew", lambda *given: anew.append(1) or attend_anew(*given))
    for dtype, open_ in ((torch.bfloat16, 4), (torch.float32, 1)):
        for mask in (None, masks.Causal()):
            given = arrays(SMALL, dtype=dtype)
            anew.clear()
            for _ in range(3):
                found = maskattn_torch.attention(*given, mask)
                assert len(seen.pop()[0]) == open_ and found.shape == given[0].shape
            assert len(anew) == 1
    for given, mask in ((arrays(SMALL, width=5), None), (arrays(SMALL), masks.SlidingWindow(3))):
        anew.clear()
        for _ in range(2):
            maskattn_torch.attention(*given, mask)
        assert len(anew) == 2


def quick(graph, inputs):
    """A compiler that takes no time: its results have the right shapes."""
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    made = [x.meta["example_value"] for x in outputs]
    return lambda *given: [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in made]


@pytest.mark.parametrize("name", ["causal", pytest.param("window", marks=pytest.mark.slow), "documents", "other"])
def test_in_a_users_compiled_function_the_choices_are_the_same_and_the_graph_is_one(name):
    seen = []

    def backend(graph, inputs):
        seen.append(str(graph.code))
        return quick(graph, inputs)

    torch._dynamo.reset()
    data = {n: ids(n) for n in (SMALL, LARGE)}
    made = {
        "causal": lambda i: masks.Causal(),
        "window": lambda i: masks.Causal() & masks.SlidingWindow(1024),
        "documents": lambda i: masks.Segments(i) & masks.Causal(),
        "other": lambda i: masks.Strided(3) | masks.KeyMask(i > 0),
    }[name]
    function = torch.compile(
        lambda q, k, v, i: maskattn_torch.attention(q, k, v, made(i)), backend=backend, fullgraph=True, dynamic=False
    )
    for n in (SMALL, LARGE):
        assert function(*arrays(n, kv_heads=4), data[n]).shape == (2, n, 16, 128)
    assert ["flex_attention" in code for code in seen] == [False, name != "causal"]


@pytest.fixture
def kept(monkeypatch):
    """What is kept for later calls is kept, of tensors that only seem to be on a GPU too."""
    for module in (plans, _hosted, scores, fused.cuda):
        monkeypatch.setattr(module, "plain", lambda: True)
    monkeypatch.setattr(_hosted, "_HELD", type(_hosted._HELD)())


def really(function):
    """The function, on tensors that are there."""

    def called(*given):
        with unset_fake_temporarily():
            return function(*given)

    return called


def test_data_of_the_host_are_copied_once_until_they_change(kept, monkeypatch):
    monkeypatch.setattr(_hosted, "peek", really(_hosted.peek))
    given, mask = arrays(SMALL), masks.KeyPadding(np.array([3, 64]))

    def bound():
        return maskattn_torch.lower.bind(mask, device=given[0].device).lengths

    first = bound()
    assert bound() is first and first.device.type == "cuda"
    assert _hosted.host_of(first).tolist() == [3, 64]
    mask.lengths[0] = 5
    assert bound() is not first and _hosted.host_of(bound()).tolist() == [5, 64]
    with unset_fake_temporarily():
        lengths = torch.tensor([1, 2])
        mask = masks.KeyPadding(lengths)
    first = bound()
    assert bound() is first
    with unset_fake_temporarily():
        lengths += 1
    assert _hosted.host_of(bound()).tolist() == [2, 3]
    learned = biases.ALiBi(2, torch.ones(2, requires_grad=True))
    assert _hosted.placed(learned.slopes, given[0].device) is None
    many = [np.arange(3) for _ in range(2 * _hosted._MOST)]
    for array in many:
        _hosted.placed(array, given[0].device)
    assert len(_hosted._HELD) == _hosted._MOST
    many = array = mask = lengths = None
    assert not _hosted._HELD


def test_lengths_of_the_host_cut_the_keys_off(kept, monkeypatch):
    seen = implementations(monkeypatch)
    for lengths, left, masked in (([40, 50], 50, True), ([40, 40], 40, False), ([0, 40], SMALL, True)):
        maskattn_torch.attention(*arrays(SMALL), masks.KeyPadding(np.array(lengths)), kernel="fused")
        _, _, key, dense, _, _ = seen.pop()
        assert key[2] == left and (dense is not None) == masked


def test_a_causal_mask_to_the_end_of_the_keys_is_sdpas_own(kept):
    for mask, own in ((masks.Causal(4), True), (masks.Causal(3), False), (masks.Causal(), False)):
        found = fused.cuda.end_aligned(mask, (1, 1, 8, 12)) if not own else True
        assert (found is not None) == own
    assert fused.cuda.needs_no_mask(Call(*arrays(LARGE, LARGE + 4), masks.Causal(4)))
    assert fused.cuda.end_aligned(masks.Causal(-4), (1, 1, 12, 8)) is None
