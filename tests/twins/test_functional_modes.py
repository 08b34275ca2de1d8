"""PyTorch's attention where no number is computed, or where tensors are of a mode: as SDPA, it runs there."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import maskattn_torch
from maskattn import biases, masks
from maskattn.config import AttentionConfig
from maskattn_torch import _short
from maskattn_torch.kernels import KERNELS

NAMES = ("auto", *KERNELS)
MASKS = {
    "none": None,
    "causal": masks.Causal(),
    "window": masks.SlidingWindow(3),
    "unreached": masks.SlidingWindow(3, 0),
    "lengths": masks.KeyPadding([4, 20]),
    "both": masks.Causal() & masks.KeyPadding([4, 20]),
}
every_kernel = pytest.mark.parametrize("kernel", NAMES)


def qkv(q_len=16, kv_len=20, **options):
    return [torch.ones(2, n, heads, 8, **options) for n, heads in ((q_len, 4), (kv_len, 2), (kv_len, 2))]


@every_kernel
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_meta_device_it_gives_shape_and_dtype_and_gradients(kernel, mask, dtype):
    given = qkv(device="meta", dtype=dtype, requires_grad=True)
    for bias in (None, biases.ALiBi(4), torch.empty(4, 16, 20, device="meta")):
        out = maskattn_torch.attention(*given, mask, bias=bias, kernel=kernel)
        assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 16, 4, 8), dtype)
        grads = torch.autograd.grad(out.float().sum(), given)
        assert [(g.device.type, g.shape) for g in grads] == [("meta", x.shape) for x in given]
    if kernel != "fused":
        options = {"softcap": 3.0, "sinks": torch.empty(4, device="meta"), "dropout_rate": 0.1, "dropout_key": 1}
        out, lse = maskattn_torch.attention(*given, mask, return_lse=True, kernel=kernel, **options)
        assert (lse.device.type, lse.shape, lse.dtype) == ("meta", (2, 16, 4), torch.float32)


@every_kernel
@pytest.mark.parametrize("options", [{}, {"kdim": 10, "vdim": 11}, {"project": False}], ids=repr)
def test_modules_run_on_the_meta_device(kernel, options):
    config = AttentionConfig(12, 3, sinks=kernel != "fused", **options)
    module = maskattn_torch.MultiHeadAttention(config, device="meta", dtype=torch.bfloat16)
    given = [torch.empty(2, 7, n, device="meta", dtype=torch.bfloat16) for n in (12, config.kdim, config.vdim)]
    out = module(*given, mask=masks.Causal(), kernel=kernel)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 7, 12), torch.bfloat16)
    if config.project:
        with pytest.raises(TypeError, match="query is torch.float32, but the parameters are torch.bfloat16"):
            module(given[0].float(), *given[1:], kernel=kernel)


@every_kernel
def test_the_seed_module_runs_on_the_meta_device(kernel):
    module = maskattn_torch.Attention(12, 3).to("meta")
    x, keep = torch.empty(2, 7, 12, device="meta"), torch.empty(2, 7, device="meta")
    assert module(x, keep, kernel=kernel).shape == (2, 7, 12)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kernel", ["auto", "fused", "reference"])
@pytest.mark.parametrize("fake_first", [True, False])
def test_fake_tensors_before_and_after_real_ones(mask, kernel, fake_first):
    KERNELS["fused"]._settled_once.cache_clear()

    def fake():
        with FakeTensorMode():
            given = qkv(requires_grad=True)
            out = maskattn_torch.attention(*given, mask, kernel=kernel)
            out.sum().backward()
            assert out.shape == (2, 16, 4, 8) and given[1].grad.shape == given[1].shape

    def real():
        given = qkv(requires_grad=True)
        out = maskattn_torch.attention(*given, mask, kernel=kernel)
        out.sum().backward()
        return out.detach()

    if fake_first:
        fake()
    first = real()
    fake()
    assert type(first) is torch.Tensor and torch.equal(real(), first) and first.isfinite().all()


@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
def test_traced_before_and_after_a_real_call(tracing_mode):
    KERNELS["fused"]._settled_once.cache_clear()

    def call(q, k, v):
        return maskattn_torch.attention(q, k, v, masks.SlidingWindow(3), kernel="fused")

    first = make_fx(call, tracing_mode=tracing_mode)(*qkv())
    real = call(*qkv())
    second = make_fx(call, tracing_mode=tracing_mode)(*qkv())
    assert torch.equal(first(*qkv()), real) and torch.equal(second(*qkv()), real)


@pytest.mark.parametrize("kernel", ["auto", "fused"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inference_before_training(kernel, mode):
    KERNELS["fused"]._settled_once.cache_clear()
    q, k, v = qkv()
    k[:, 16:], mask = torch.nan, masks.SlidingWindow(4, 0)  # a cache: no query sees its end
    with mode():
        expected = maskattn_torch.attention(q, k, v, mask, kernel=kernel)
    out = maskattn_torch.attention(q, k.requires_grad_(), v, mask, kernel=kernel)
    out.sum().backward()
    assert torch.equal(out, expected) and k.grad.isfinite().all()


def test_transforms_before_and_after_training():
    """What is made inside of a transform is of it."""
    mask, (q, k, v) = masks.SlidingWindow(4, 0), qkv()
    k[:, 16:] = torch.nan

    def loss(k):
        return maskattn_torch.attention(q, k, v, mask, kernel="fused").sum()

    for first in (torch.func.functionalize, torch.func.grad, lambda f: torch.func.grad(torch.func.functionalize(f))):
        KERNELS["fused"]._settled_once.cache_clear()
        first(loss)(k)
        assert KERNELS["fused"]._settled_once.cache_info().currsize == 0
        assert torch.autograd.grad(loss(x := k.clone().requires_grad_()), x)[0].isfinite().all()
        first(loss)(k)


def test_in_plain_eager_code_a_mask_is_settled_once():
    attend = KERNELS["fused"]._settled_once
    attend.cache_clear()
    with torch.inference_mode():
        maskattn_torch.attention(*qkv(), masks.SlidingWindow(3), kernel="fused")
    maskattn_torch.attention(*qkv(), masks.SlidingWindow(3), kernel="fused")
    assert (attend.cache_info().hits, attend.cache_info().misses) == (1, 1)


SHORT = {"none": None, "causal": masks.Causal(), "array": torch.ones(2, 1, 16, 20, dtype=torch.bool).tril(2)}


@pytest.mark.parametrize("mask", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("kernel", ["auto", "fused"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by jvp itself
def test_a_call_like_one_before_in_another_mode(mask, kernel):
    """What was found out about a call is used for those that are like it, and only where it holds."""
    _short._PLANS.clear()
    given = [torch.randn(x.shape) for x in qkv(kv_len=16 if mask is SHORT["causal"] else 20)]

    def call(*given, **options):
        return maskattn_torch.attention(*given, mask, kernel=kernel, **options)

    expected = call(*given)
    assert len(_short._PLANS) == 1 and all(_short._PLANS.values())
    assert torch.equal(call(*given), expected) and len(_short._PLANS) == 1
    with torch.inference_mode():
        assert torch.equal(call(*given), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(*given), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert type(call(*map(fake.from_tensor, given))) is not torch.Tensor
    assert torch.equal(torch.func.vmap(call)(*(x[None] for x in given))[0], expected)
    assert torch.equal(make_fx(call)(*given)(*given), expected)
    trained = [x.clone().requires_grad_() for x in given]
    first, second = (torch.autograd.grad(call(*x).sum(), x) for x in (trained, [torch.nn.Parameter(x) for x in given]))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    if kernel == "auto":  # SDPA has no forward mode
        torch.func.jvp(call, tuple(given), tuple(given))
    if mask is SHORT["array"]:  # no query sees its end
        for x in trained[1:]:
            x.data[:, 18:] = torch.nan
        out = call(*trained)
        assert torch.equal(out, expected) and torch.autograd.grad(out.sum(), trained)[0].isfinite().all()
    for wrong in ({"scale": "1"}, {"dropout_rate": False}, {"precision": ["highest"]}, {"empty_rows": "none"}):
        with pytest.raises((TypeError, ValueError)):
            call(*given, **wrong)
    with pytest.raises(ValueError, match="agree in batch"):
        call(given[0][:1], *given[1:])
