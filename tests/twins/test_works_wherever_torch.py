"""Attention of the PyTorch twin works wherever `scaled_dot_product_attention` does: modes of PyTorch with every kernel.

Modes: calls with nothing in them, with gradients; fake and meta tensors; no_grad and inference_mode; `torch.compile`
with fullgraph, of ints that change from call to call; `torch.export` with batch and lengths left open, called beyond
what was traced. Masks are spread over the kernels; results are held to those of the plain call, which other tests hold
to the oracle. SDPA goes beside: what a mode itself refuses would be no fault of ours.
"""

import warnings
from functools import partial

import pytest

from maskattn import biases, masks, standards
from tests.frameworks import maskattn_torch, optional, torch

FlopCounterMode = optional("torch.utils.flop_counter").FlopCounterMode if torch else None
FakeTensorMode = optional("torch._subclasses").FakeTensorMode if torch else None
KERNELS = ["auto", "reference", "fused", "blockwise", "exact"]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def each_with(names, few):
    """Every kernel with each of `names`; to those that are given the entries of a mask, `few` stand for all."""
    pairs = [(kernel, name, kernel in ("auto", "blockwise") or name in few) for kernel in KERNELS for name in names]
    params = [pytest.param(*pair, marks=[pytest.mark.slow] * (not quick)) for *pair, quick in pairs]
    return pytest.mark.parametrize(("kernel", "mask"), params)


MASKS = {
    "nothing": lambda q, k: None,
    "causal": lambda q, k: masks.Causal(),
    "causal at the end": lambda q, k: masks.Causal(k.shape[1] - q.shape[1]),
    "window": lambda q, k: masks.SlidingWindow(3),
    "causal window": lambda q, k: masks.Causal() & masks.SlidingWindow(5),
    "chunks": lambda q, k: masks.Chunked(7),
    "lengths": lambda q, k: masks.KeyPadding(torch.full((q.shape[0],), 8)),
    "causal and lengths": lambda q, k: masks.Causal() & masks.KeyPadding(torch.full((q.shape[0],), 8)),
}

#: A mask made of an int that changes, in the compiled function.
OF_INTS = {
    "causal": masks.Causal,
    "at": lambda i: masks.Causal().at(i),
    "window": lambda i: masks.SlidingWindow(i, 0),
    "prefix": lambda i: masks.PrefixLM(i),
    "expression": lambda i: masks.Causal(i) & masks.SlidingWindow(i + 1) | masks.KeyPadding([3, 4]),
    "list": lambda i: masks.KeyPadding([3, 4]),
}


def qkv(batch=2, q_len=8, kv_len=8, heads=4, kv_heads=2, **options):
    made = torch.Generator().manual_seed(5)
    shapes = [(batch, q_len, heads, 8), *[(batch, kv_len, kv_heads, 8)] * 2]
    return [torch.randn(shape, generator=made, **options) for shape in shapes]


def close(found, expected, name="same.compiled"):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.allclose(found, expected, rtol=standards.value(name), atol=standards.value(name))


def sdpa(q, k, v):
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, enable_gqa=True).transpose(1, 2)


@every_kernel
@pytest.mark.parametrize("empty", ["batch", "q_len", "kv_len", "heads"])
@pytest.mark.parametrize("mask", [None, masks.Causal(), masks.SlidingWindow(3), masks.KeyPadding([0])], ids=repr)
def test_nothing(kernel, empty, mask):
    sizes = {empty: 0} if empty != "heads" else {"heads": 0, "kv_heads": 0}
    given = [x.requires_grad_() for x in qkv(**sizes)]
    out = maskattn_torch.attention(*given, mask, kernel=kernel)
    assert out.shape == sdpa(*given).shape and (out == 0).all()
    out.sum().backward()
    assert all((x.grad == 0).all() for x in given)


@every_kernel
@pytest.mark.parametrize("mask", MASKS)
def test_shapes_without_numbers(kernel, mask):
    with FakeTensorMode():
        given = qkv()
        assert maskattn_torch.attention(*given, MASKS[mask](*given[:2]), kernel=kernel).shape == sdpa(*given).shape
    given = [x.to("meta") for x in qkv()]
    if "lengths" not in mask:
        out = maskattn_torch.attention(*given, MASKS[mask](*given[:2]), kernel=kernel)
        assert (out.device.type, out.shape) == ("meta", sdpa(*given).shape)


@every_kernel
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_without_gradients_then_with(kernel, mode):
    given, mask = qkv(kv_len=12), masks.SlidingWindow(4, 0)
    with getattr(torch, mode)():
        expected = maskattn_torch.attention(*given, mask, kernel=kernel)
    given = [x.requires_grad_() for x in given]
    out = maskattn_torch.attention(*given, mask, kernel=kernel)
    close(out, expected)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in given)


def graphs_of(function, calls):
    """How many graphs a compiled function has after these calls, each of which gives what it gives eagerly."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    found = [compiled(*call) for call in calls]
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for call, one in zip(calls, found, strict=True):
        close(one, function(*call))
    return count


@each_with(OF_INTS, few=("window", "list"))
def test_ints_that_change(kernel, mask):
    given = qkv()

    def function(query, number):
        return maskattn_torch.attention(query, *given[1:], OF_INTS[mask](number), kernel=kernel)

    assert graphs_of(function, [(given[0], i) for i in (3, 4, 5, 6)]) <= 2


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "fused"])
def test_a_seed_that_changes(kernel):
    given = qkv()

    def function(query, key):
        return maskattn_torch.attention(query, *given[1:], kernel=kernel, dropout_rate=0.3, dropout_key=key)

    assert graphs_of(function, [(given[0], i) for i in (3, 4, 5, 6)]) <= 2


@pytest.mark.parametrize("bias", ["alibi", "t5"])
def test_a_bias_that_is_made_inside(bias):
    given = qkv()
    heads = given[0].shape[2]
    table = torch.randn(32, heads, generator=torch.Generator().manual_seed(0))

    def function(query, number):
        made = biases.ALiBi(heads, offset=number) if bias == "alibi" else biases.T5Buckets(table, offset=number)
        return maskattn_torch.attention(query, *given[1:], bias=made, kernel="reference")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphs_of(function, [(given[0], i) for i in (3, 4, 5, 6)]) <= 2


def trained(function, *given):
    """What a function gives for these, and the gradients of the sum of its squares."""
    given = [x.detach().requires_grad_() for x in given]
    out = function(*given)
    return out, *torch.autograd.grad(out.square().sum(), given)


GIVEN_TWICE = {
    "once": lambda x, y, kernel: maskattn_torch.attention(x, x, x, masks.KeyPadding([8, 5]), kernel=kernel) * y,
    "memory": lambda x, y, kernel: maskattn_torch.attention(x, y, y, masks.Causal(), kernel=kernel),
    "mask": lambda x, y, kernel: maskattn_torch.attention(x, x, y, twice(y[..., 0, 0] < 0), kernel=kernel),
    "more": lambda x, y, kernel: (
        maskattn_torch.attention(
            x, x, x, softcap=2.0, sinks=x[0, 0, :, 0], bias=x.transpose(1, 2)[..., :1], kernel=kernel
        )
        * y
    ),
}


def twice(keep):
    return masks.KeyMask(keep) & masks.SlidingWindow(3) | masks.KeyMask(keep)


@every_kernel
@pytest.mark.parametrize("call", GIVEN_TWICE)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_tensor_given_twice_in_compiled_training(kernel, call):
    if kernel == "fused" and call == "more":
        pytest.skip("it has neither softcap nor sinks")
    function = partial(GIVEN_TWICE[call], kernel=kernel)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    given = qkv(heads=2)[:2]
    for one, other in zip(trained(compiled, *given), trained(function, *given), strict=True):
        close(one, other)


@pytest.mark.parametrize(
    "mask", [masks.KeyMask, lambda keep: masks.Causal().with_positions(keep.long().cumsum(-1), keep.long().cumsum(-1))]
)
def test_a_length_that_is_open_in_one_tensor_alone_is_no_conflict(mask):
    """After calls of several lengths compiled code may have one length as a number, a mask's as an open one."""
    query, keep = torch.randn(2, 24, 2, 8), torch.arange(24) < torch.tensor([[24], [9]])
    torch._dynamo.reset()
    torch._dynamo.mark_static(query, 1)
    torch._dynamo.maybe_mark_dynamic(keep, 1)

    def function(query, keep):
        return maskattn_torch.attention(query, query, query, mask(keep), kernel="reference")

    close(torch.compile(function, fullgraph=True, backend="eager")(query, keep), function(query, keep))


@every_kernel
def test_masks_as_arguments(kernel):
    given = qkv()

    def function(query, mask):
        return maskattn_torch.attention(query, *given[1:], mask, kernel=kernel)

    calls = [(given[0], masks.SlidingWindow(3).at(i)) for i in (3, 4, 5, 6)]
    assert graphs_of(function, calls) <= 3


@each_with(MASKS, few=("nothing", "window", "causal and lengths"))
@pytest.mark.parametrize("lengths", ["one", "two"])
def test_export_of_a_range(kernel, mask, lengths):
    if kernel == "exact" and mask not in ("nothing", "window"):
        pytest.skip("its program is large: two masks do")
    if lengths == "two" and kernel not in ("auto", "blockwise"):
        pytest.skip("these look at lengths nowhere else")

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return maskattn_torch.attention(q * 1, k * 1, v * 1, MASKS[mask](q, k), kernel=kernel)

    batch, length, other = (torch.export.Dim(name, min=2, max=4096) for name in "BLS")
    dims = [{0: batch, 1: length}] * 3 if lengths == "one" else [{1: length}, {1: other}, {1: other}]
    sizes = [(2, 24, 24), (3, 40, 40)] if lengths == "one" else [(2, 24, 31), (2, 40, 12)]
    sizes = [(*each, 4, 2) for each in sizes]
    program = torch.export.export(Model(), tuple(qkv(*sizes[0])), dynamic_shapes=dims).module()
    for each in sizes:
        close(program(*qkv(*each)), Model()(*qkv(*each)))


@every_kernel
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_torch_jit_records_serves_other_lengths(kernel):
    def function(q, k, v, lengths):
        mask = ~masks.Chunked(3) & masks.SlidingWindow(2) | masks.KeyPadding(lengths)
        return maskattn_torch.attention(q, k, v, mask, kernel=kernel)

    recorded = torch.jit.trace(function, (*qkv(), torch.tensor([3, 8])), check_trace=False)
    other = (*qkv(q_len=5, kv_len=11), torch.tensor([11, 6]))
    close(recorded(*other), function(*other))


def test_flops_are_counted_of_what_is_computed():
    def flops(mask, kernel, **sizes):
        with FlopCounterMode(display=False) as counter:
            maskattn_torch.attention(*(x.requires_grad_() for x in qkv(**sizes)), mask, kernel=kernel).sum().backward()
        return counter.get_total_flops()

    one = 2 * 8 * (2 + 5)  # a pair of a query and a key of width 8: two products forward, five backward
    assert flops(None, "exact") == flops(None, "blockwise") == 2 * 4 * 8 * 8 * one
    sizes = {"batch": 1, "q_len": 1024, "kv_len": 1024}
    window = masks.SlidingWindow(64)
    assert flops(window, "auto", **sizes) == flops(window, "blockwise", **sizes) < 4 * 1024 * 1024 * one / 4
