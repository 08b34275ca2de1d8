"""scaled_dot_product_attention against PyTorch's own, argument by argument."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils.checkpoint import checkpoint

import maskattn_torch
from maskattn import masks, standards
from maskattn_torch import scaled_dot_product_attention
from tests.twins.peers import limits, within

L, S, D = 3, 5, 4
#: The axes before [length, width] of the query, of key and value; the mask's shape; options.
CALLS = {
    "two axes": ((), (), None, {}),
    "three axes": ((2,), (2,), (2, L, S), {}),
    "four axes": ((2, 4), (2, 4), (2, 1, L, S), {}),
    "five axes": ((2, 3, 2), (2, 3, 2), (3, 1, L, S), {}),
    "five axes, a mask of all": ((2, 3, 2), (2, 3, 2), (2, 1, 2, 1, S), {}),
    "causal": ((2, 4), (2, 4), None, {"is_causal": True}),
    "scale": ((2, 4), (2, 4), None, {"scale": -0.7}),
    "batch and heads broadcast": ((2, 1), (1, 3), None, {}),
    "more axes of the keys": ((), (2, 3), (L, S), {}),
    "one head of the keys": ((2, 4), (2, 1), (4, L, 1), {}),
    "a mask of one axis": ((2, 4), (2, 4), (S,), {}),
    "a mask of no axis": ((2, 4), (2, 4), (), {}),
    "grouped": ((2, 4), (2, 2), (L, S), {"enable_gqa": True}),
    "grouped, no batch": ((4,), (2,), None, {"enable_gqa": True}),
    "grouped, five axes": ((2, 2, 4), (1, 2, 2), None, {"enable_gqa": True}),
}


def operands(lead=(2, 4), kv_lead=(2, 4), dtype=torch.float32, width=D):
    made = torch.Generator().manual_seed(0)
    shapes = (*lead, L, D), (*kv_lead, S, D), (*kv_lead, S, width)
    return [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype) for shape in shapes]


def drawn_mask(shape, dtype):
    """A bool mask, in which no row is empty, or a float one of the given dtype; None where there is none."""
    if shape is None:
        return None
    made = torch.Generator().manual_seed(1)
    if dtype != torch.bool:
        return torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)
    keep = torch.rand(shape, generator=made) > 0.4
    if keep.ndim:
        keep[..., 0] = True
    return keep


def run(function, arrays, mask, options):
    """The output and the gradients of all arrays, of a float mask too."""
    learned = [x.detach().clone().requires_grad_() for x in arrays]
    if mask is not None and mask.is_floating_point():
        mask = mask.detach().clone().requires_grad_()
        learned.append(mask)
    torch.manual_seed(2)
    found = function(*learned[:3], mask, **options)
    weights = torch.cos(torch.arange(found.numel())).reshape(found.shape).to(found.dtype)
    return [x.detach() for x in (found, *torch.autograd.grad(found, learned, weights))]


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize(("lead", "kv_lead", "mask", "options"), CALLS.values(), ids=CALLS)
def test_outputs_and_gradients_are_those_of_pytorch(lead, kv_lead, mask, options, kind):
    arrays, mask = operands(lead, kv_lead, width=6), drawn_mask(mask, kind)
    given = mask.expand(L, S) if mask is not None and mask.ndim < 2 and kind == torch.bool else mask
    found = run(scaled_dot_product_attention, arrays, mask, options)
    expected = run(F.scaled_dot_product_attention, arrays, given, options)
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        within(mine, theirs, standards.value("same.gradient" if i else "same.tiles"))


def test_heads_of_key_and_value_that_differ_are_repeated_one_by_one():
    query, key, value = torch.randn(3, 1, 6, L, D, generator=torch.Generator().manual_seed(0)).unbind()
    arrays = (query, key[:, :2], value[:, :3])
    found, expected = (
        run(function, arrays, None, {"enable_gqa": True})
        for function in (scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    for mine, theirs in zip(found, expected, strict=True):
        within(mine, theirs, standards.value("same.gradient"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32], ids=["bool", "added"])
def test_in_every_dtype_within_the_sum_of_both_bounds(dtype, kind):
    arrays, mask = operands(dtype=dtype), drawn_mask((2, 1, L, S), kind)
    found, expected = (run(f, arrays, mask, {}) for f in (scaled_dot_product_attention, F.scaled_dot_product_attention))
    wide = [np.asarray(x.double()).transpose(0, 2, 1, 3) for x in arrays]
    array = np.asarray(mask.double())
    allowed, bias = (array != 0, None) if kind == torch.bool else (None, array)
    cotangent = np.cos(np.arange(found[0].numel())).reshape(found[0].shape).transpose(0, 2, 1, 3)
    name = str(dtype).removeprefix("torch.")
    for mine, theirs, limit in zip(found, expected, limits(*wide, allowed, cotangent, name, bias=bias), strict=True):
        assert mine.dtype == theirs.dtype
        within(mine.double(), theirs.double(), limit)


@pytest.mark.parametrize(
    ("mask", "dense"),
    [
        (masks.SlidingWindow(1, 1), masks.SlidingWindow(1, 1).dense(L, S)),
        (masks.KeyPadding([5, 2]), masks.KeyPadding([5, 2]).dense(L, S)),
        (causal_upper_left(L, S), np.tri(L, S, dtype=bool)),
        (causal_lower_right(L, S), np.tri(L, S, S - L, dtype=bool)),
    ],
    ids=["window", "padding", "upper left", "lower right"],
)
def test_a_mask_of_ours_and_a_bias_of_pytorchs_stand_where_a_tensor_may(mask, dense):
    arrays = operands()
    found = scaled_dot_product_attention(*arrays, mask)
    within(found, F.scaled_dot_product_attention(*arrays, torch.tensor(dense)), standards.value("same.tiles"))


def test_a_mask_of_ours_counts_all_axes_before_the_heads_as_the_batch():
    arrays = operands((2, 3, 2), (2, 3, 2))
    mask = masks.KeyPadding([1, 2, 3, 4, 5, 4])
    found = scaled_dot_product_attention(*arrays, mask, is_causal=True)
    keep = torch.tensor((mask & masks.Causal()).dense(L, S).reshape(2, 3, 1, L, S))
    within(found, F.scaled_dot_product_attention(*arrays, keep), standards.value("same.tiles"))
    with pytest.raises(ValueError, match="expects batch 6, got 1"):  # here the six are heads
        scaled_dot_product_attention(*operands((6,), (6,)), mask)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["equal", "grouped"])
def test_what_is_strided_or_expanded_is_taken_as_it_is(heads):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, heads[i > 0], 16).transpose(1, 2) for i, n in enumerate((7, 9, 9)))
    calls = []
    real = maskattn_torch.sdpa.attend

    def seen(call, framework):
        calls.append((call.query, call.key, call.value))
        return real(call, framework)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(maskattn_torch.sdpa, "attend", seen)
        scaled_dot_product_attention(query, key, value, enable_gqa=heads[0] != heads[1])
        scaled_dot_product_attention(query, key[:1].expand_as(key), value, enable_gqa=heads[0] != heads[1])
    for x, given in zip(calls[0], (query, key, value), strict=True):
        assert x.data_ptr() == given.data_ptr() and x.is_contiguous()
    assert calls[1][1].data_ptr() == key.data_ptr()


def test_dropout_is_drawn_from_pytorchs_generator():
    eye = torch.eye(64).expand(2, 3, 64, 64)  # the output is then the weights
    torch.manual_seed(5)
    first, second = (scaled_dot_product_attention(eye * 0, eye * 0, eye, dropout_p=0.25) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(first, scaled_dot_product_attention(eye * 0, eye * 0, eye, dropout_p=0.25))
    assert not torch.equal(first, second)
    share = (first == 0).double().mean().item()
    errors = (0.25 * 0.75 / first.numel()) ** 0.5
    assert abs(share - 0.25) <= standards.value("draws.errors") * errors
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1 / 64) / torch.tensor(0.75))}


def test_dropout_of_everything_and_of_nothing():
    arrays = operands()
    found = run(scaled_dot_product_attention, arrays, None, {"dropout_p": 1.0})
    assert all(torch.all(x == 0) for x in found)
    assert torch.equal(*(scaled_dot_product_attention(*arrays, dropout_p=p) for p in (0, 0.0)))


def test_checkpointing_drops_the_same_weights_again():
    x = operands()[0].requires_grad_()

    def attend(x):
        return scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    torch.manual_seed(3)
    expected = torch.autograd.grad(attend(x).square().sum(), x)
    torch.manual_seed(3)
    found = torch.autograd.grad(checkpoint(attend, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(*expected, *found)


def test_under_autocast_what_pytorch_lowers_is_lowered():
    wide, mixed = operands(), operands()
    mixed[1] = mixed[1].bfloat16()
    double = operands(dtype=torch.float64)
    for arrays, mask in ((wide, None), (wide, torch.randn(L, S)), (mixed, None), (double, None)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = scaled_dot_product_attention(*arrays, mask)
            expected = F.scaled_dot_product_attention(*arrays, mask)
        assert found.dtype == expected.dtype
        within(found.double(), expected.double(), standards.eps("bfloat16") if found.dtype != torch.float64 else 0)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_under_vmap_each_call_is_its_own():
    query, key, value = operands((3, 2, 4), (3, 2, 4))
    mask = drawn_mask((3, L, S), torch.bool)
    found = torch.func.vmap(scaled_dot_product_attention)(query, key, value, mask)
    each = [scaled_dot_product_attention(*given) for given in zip(query, key, value, mask, strict=True)]
    within(found, torch.stack(each), standards.value("same.mapped"))


def test_it_compiles_whole_and_again_for_another_rate():
    torch._dynamo.reset()
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True, backend="eager")
    arrays = operands((2, 4), (2, 4))
    for given, options in (((), {"is_causal": True}), ((masks.SlidingWindow(1, 0),), {}), ((torch.randn(L, S),), {})):
        expected = scaled_dot_product_attention(*arrays, *given, **options)
        within(compiled(*arrays, *given, **options), expected, standards.value("same.tiles"))
    for rate in (0.1, 0.4, 0.5):
        torch.manual_seed(0)
        expected = scaled_dot_product_attention(*arrays, dropout_p=rate)
        torch.manual_seed(0)
        within(compiled(*arrays, dropout_p=rate), expected, standards.value("same.tiles"))


REFUSED = {
    "dtypes": (lambda q, k, v: (q, k.half(), v), {}, "must have one dtype, got torch.float32, torch.float16"),
    "one axis": (lambda q, k, v: (q[0, 0, 0], k, v), {}, "must have two axes or more"),
    "leading axes": (lambda q, k, v: (q, k[:, :3], v[:, :3]), {}, "shape|broadcast"),
    "mask of ints": (lambda *x: x, {"attn_mask": torch.ones(L, S, dtype=torch.int)}, "attn_mask must be bool"),
    "mask of doubles": (lambda *x: x, {"attn_mask": torch.ones(L, S).double()}, "attn_mask must be bool"),
    "shape of the mask": (lambda *x: x, {"attn_mask": torch.ones(L, S + 1)}, "must broadcast to"),
    "too large a mask": (lambda *x: (y[0] for y in x), {"attn_mask": torch.ones(2, 4, L, S)}, "must broadcast to"),
    "both": (lambda *x: x, {"attn_mask": torch.ones(L, S), "is_causal": True}, "Explicit attn_mask should not be set"),
    "dropout": (lambda *x: x, {"dropout_p": 1.5}, "dropout_p must be between 0 and 1, got 1.5"),
    "groups": (lambda q, k, v: (q, k[:, :3], v[:, :3]), {"enable_gqa": True}, "must divide those of the query"),
    "groups of none": (lambda *x: (y[0, 0] for y in x), {"enable_gqa": True}, "needs an axis of heads"),
}


@pytest.mark.parametrize(("given", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_where_pytorch_raises_so_do_we(given, options, message):
    arrays = list(given(*operands()))
    if options.get("attn_mask") is not None and "is_causal" in options:  # one of its kernels takes both
        arrays_for_it = [x.half() for x in arrays]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(*arrays_for_it, **options)
    else:
        with pytest.raises((RuntimeError, IndexError)):
            F.scaled_dot_product_attention(*arrays, **options)
    with pytest.raises(RuntimeError, match=message):
        scaled_dot_product_attention(*arrays, **options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_else_is_no_argument_is_refused_by_name():
    query, key, value = operands()
    with pytest.raises(TypeError, match="must be tensors, got ndarray, Tensor, Tensor"):
        scaled_dot_product_attention(np.zeros((2, 3, 4, 4)), key, value)
    with pytest.raises(TypeError, match="attn_mask must be a tensor or a Mask, got list"):
        scaled_dot_product_attention(query, key, value, [[True]])
    with pytest.raises(TypeError, match="unexpected keyword argument 'window'"):
        scaled_dot_product_attention(query, key, value, window=3)
    with pytest.raises(TypeError, match="positional arguments"):
        scaled_dot_product_attention(query, key, value, None, 0.0, False, 0.5)
    nested = torch.nested.nested_tensor([torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)])
    with pytest.raises(NotImplementedError, match=r"masks.KeyPadding"):
        scaled_dot_product_attention(nested, nested, nested)


def test_rows_that_may_attend_to_nothing_are_zero_as_pytorchs_or_what_is_asked_for():
    arrays = operands()
    keep = drawn_mask((2, 1, L, S), torch.bool)
    keep[0, 0, 1] = False
    expected = run(F.scaled_dot_product_attention, arrays, keep, {})
    found = run(scaled_dot_product_attention, arrays, keep, {})
    assert torch.all(found[0][0, :, 1] == 0) and torch.all(found[1][0, :, 1] == 0)
    for mine, theirs in zip(found, expected, strict=True):
        within(mine, theirs, standards.value("same.gradient"))
    assert torch.all(scaled_dot_product_attention(*arrays, keep, empty_rows="nan")[0, :, 1].isnan())


def test_known_difference_nan_in_what_is_masked():
    query, key, value = operands()
    key[:, :, 3] = value[:, :, 3] = torch.nan
    keep = torch.ones(L, S, dtype=torch.bool)
    keep[:, 3] = False
    assert F.scaled_dot_product_attention(query, key, value, keep).isnan().all()
    assert scaled_dot_product_attention(query, key, value, keep).isfinite().all()


def test_known_difference_dropout_is_another_draw():
    arrays = operands()
    drawn = []
    for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
        torch.manual_seed(0)
        drawn.append(function(*arrays, dropout_p=0.5))
    assert not torch.equal(*drawn)


def test_known_difference_lengths_of_key_and_value_that_differ():
    query, key, value = operands()
    assert (
        F.scaled_dot_product_attention(query, key[:, :, :4], value).shape == query.shape
    )  # its CPU kernel does not look
    with pytest.raises(ValueError, match="key and value must agree in length, got 4 and 5"):
        scaled_dot_product_attention(query, key[:, :, :4], value)
