"""mha.MultiheadAttention against torch.nn.MultiheadAttention, argument by argument, and in PyTorch's encoder layers."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskattn import AttentionConfig, convert_tensors, masks, standards
from maskattn_torch.mha import MultiheadAttention, replace
from tests.twins.peers import within

L, S, B, E, H = 4, 5, 3, 8, 2
OPTIONS = ("batch_first", "add_bias_kv", "add_zero_attn", "bias")
LIMIT, GRADIENT = standards.value("same.tiles"), standards.value("same.gradient")


def pair(**options):
    """A module of PyTorch's with biases that are not 0, and ours on its parameters."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return MultiheadAttention.of(theirs), theirs


def inputs(made, batched=True):
    def drawn(length, width):
        shape = (B, length, width) if made.batch_first else (length, B, width)
        return torch.randn(shape if batched else (length, width))

    torch.manual_seed(1)
    return drawn(L, E), drawn(S, made.kdim), drawn(S, made.vdim)


def masked(batched=True):
    """Every kind of attn_mask with every kind of key_padding_mask."""
    torch.manual_seed(2)
    rows = B if batched else 1
    drop, padding = torch.rand(rows * H, L, S) > 0.6, torch.zeros(rows, S, dtype=torch.bool)
    drop[..., 1] = False
    padding[0, 3:] = True
    padding = padding if batched else padding[0]
    return [
        (None, None),
        (drop[0], None),
        (drop, padding),
        (
            torch.zeros(L, S).masked_fill(drop[0], -torch.inf),
            torch.zeros(padding.shape).masked_fill(padding, -torch.inf),
        ),
        (torch.randn(rows * H, L, S), torch.randn(padding.shape)),
        (drop, torch.randn(padding.shape)),
    ]


def run(module, given, **options):
    """Output, weights, and the gradients of inputs and parameters of a sum over both."""
    learned = [x.clone().requires_grad_() for x in given]
    out, weights = module(*learned, **options)
    found = [x for x in (out, weights) if x is not None]
    total = sum((x * torch.cos(torch.arange(x.numel())).reshape(x.shape)).sum() for x in found)
    return [x.detach() for x in (*found, *torch.autograd.grad(total, [*learned, *module.parameters()]))]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 5}], ids=["one width", "three widths"])
@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=4)), ids=str)
def test_outputs_weights_and_gradients_are_those_of_pytorch(flags, options):
    ours, theirs = pair(**dict(zip(OPTIONS, flags, strict=True)), **options)
    for batched in (True, False):
        given = inputs(theirs, batched)
        for i, (attn_mask, padding) in enumerate(masked(batched)):
            call = {"attn_mask": attn_mask, "key_padding_mask": padding, "need_weights": i % 2 == 0}
            call["average_attn_weights"] = i % 4 == 0
            found, expected = run(ours, given, **call), run(theirs, given, **call)
            for mine, right in zip(found, expected, strict=True):
                within(mine, right, GRADIENT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_output_is_within_the_sum_of_both_bounds(dtype):
    ours, theirs = (made.to(dtype) for made in pair(batch_first=True))
    query, key, value = (x.to(dtype) for x in inputs(theirs))
    keep = masks.SlidingWindow(2, 1).dense(L, S)
    found = ours(query, key, value, attn_mask=~torch.tensor(keep[0, 0]), need_weights=False)[0]
    expected = theirs(query, key, value, attn_mask=~torch.tensor(keep[0, 0]), need_weights=False)[0]
    stored = {name: x.detach().double().numpy() for name, x in theirs.state_dict().items()}
    weights = convert_tensors(stored, source="torch-mha", target="canonical", config=AttentionConfig(E, H))
    x = [np.asarray(x.double()) for x in (query, key, value)]
    name = str(dtype).removeprefix("torch.")
    limit = standards.module_limit(x[0], weights, keep, name, key=x[1], value_input=x[2])
    within(found.detach().double(), expected.detach().double(), standards.value("module.peer") * limit)


def test_it_has_the_names_and_the_initial_numbers_of_pytorchs():
    for options in ({}, {"kdim": 6, "vdim": 5, "add_bias_kv": True}, {"bias": False}):
        torch.manual_seed(0)
        theirs = nn.MultiheadAttention(E, H, **options).state_dict()
        torch.manual_seed(0)
        made = MultiheadAttention(E, H, **options)
        assert isinstance(made, nn.MultiheadAttention) and list(made.state_dict()) == list(theirs)
        assert all(torch.equal(x, theirs[name]) for name, x in made.state_dict().items())
        again = copy.deepcopy(pickle.loads(pickle.dumps(made)))
        again._reset_parameters()
        again.load_state_dict(theirs)
        assert torch.equal(again.out_proj.weight, made.out_proj.weight)


def test_a_mask_of_ours_is_taken_as_attn_mask_with_padding_and_added_keys_too():
    window, keep = masks.SlidingWindow(1, 1), torch.tensor(masks.SlidingWindow(1, 1).dense(L, S)[0, 0])
    for options in ({}, {"add_bias_kv": True, "add_zero_attn": True}):
        ours, theirs = pair(**options)
        given, (_, padding) = inputs(theirs), masked()[2]
        found = run(ours, given, attn_mask=window, key_padding_mask=padding)
        expected = run(theirs, given, attn_mask=~keep, key_padding_mask=padding)
        if options:  # else the last row has no key that is not padding
            for mine, right in zip(found, expected, strict=True):
                within(mine, right, GRADIENT)
        assert found[1][1, :, 3:S].ne(0).any() and found[1][0, :, 3:S].eq(0).all()


def test_the_hint_is_taken_where_pytorch_takes_it():
    ours, theirs = pair()
    given = inputs(theirs)
    causal = torch.ones(L, S, dtype=torch.bool).triu(1)
    for wrong in (causal, torch.zeros(L, S, dtype=torch.bool)):
        for need_weights in (False, True):
            options = {"attn_mask": wrong, "is_causal": True, "need_weights": need_weights}
            within(ours(*given, **options)[0].detach(), theirs(*given, **options)[0].detach(), LIMIT)
    with pytest.raises(RuntimeError, match="is_causal is a hint about attn_mask"):
        ours(*given, is_causal=True)


def test_dropout_drops_weights_in_training_alone_and_returns_them():
    ours, _ = pair(dropout=0.5, batch_first=True, add_zero_attn=True)
    x = torch.randn(B, 32, E)
    torch.manual_seed(3)
    out, weights = ours(x, x, x, average_attn_weights=False)
    torch.manual_seed(3)
    again = ours(x, x, x, need_weights=False)[0]
    within(out.detach(), again.detach(), LIMIT)
    share = (weights == 0).double().mean().item()
    assert abs(share - 0.5) <= standards.value("draws.errors") * (0.25 / weights.numel()) ** 0.5
    values = F.linear(x, ours.in_proj_weight[-E:], ours.in_proj_bias[-E:]).unflatten(-1, (H, -1))
    values = torch.cat([values, values.new_zeros(B, 1, H, E // H)], 1)
    heads = torch.einsum("bhls,bshd->blhd", weights, values).flatten(2)
    within(ours.out_proj(heads).detach(), out.detach(), LIMIT)
    assert ours.eval()(x, x, x)[1].ne(0).all()


def encoder(norm_first=False):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoders_of_pytorch_run_by_it_in_training_and_past_no_fast_path_in_eval(norm_first, monkeypatch):
    theirs = encoder(norm_first)
    ours = replace(copy.deepcopy(theirs))
    assert [type(layer.self_attn) for layer in ours.layers] == [MultiheadAttention] * 2
    torch.manual_seed(1)
    x, padding = torch.randn(B, S, E), masked()[2][1]
    causal = torch.ones(S, S, dtype=torch.bool).triu(1)
    calls = []
    real = MultiheadAttention.forward
    monkeypatch.setattr(MultiheadAttention, "forward", lambda self, *a, **o: calls.append(1) or real(self, *a, **o))
    for watched, mask in itertools.product((False, True), (None, causal)):
        with torch.set_grad_enabled(watched):
            options = {"mask": mask, "src_key_padding_mask": padding}
            found, expected = ours(x, **options), theirs(x, **options)  # theirs: the fast path where nobody watches
        within(found.detach()[~padding], expected.detach()[~padding], LIMIT)
    assert len(calls) == 8
    made = nn.TransformerEncoder(replace(encoder().layers[0]), 1, enable_nested_tensor=False).eval()
    with torch.no_grad():
        within(made(x, src_key_padding_mask=padding), made(x, src_key_padding_mask=padding), 0)
    assert len(calls) == 10


def test_an_encoder_made_of_such_a_layer_makes_no_nested_tensors():
    with pytest.warns(UserWarning, match="_qkv_same_embed_dim was not True"):
        assert not nn.TransformerEncoder(replace(encoder().layers[0]), 1).use_nested_tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_one_that_was_made_before_and_does_is_refused_in_words():
    made = encoder()
    for layer in made.layers:
        layer.self_attn = MultiheadAttention.of(layer.self_attn)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[0, 3:] = True
    with (
        torch.no_grad(),
        pytest.raises(NotImplementedError, match="unless its use_nested_tensor is False"),
    ):
        made(torch.randn(B, S, E), src_key_padding_mask=padding)


def test_replacing_shares_parameters_and_hooks_and_refuses_what_it_does_not_know():
    model = nn.Transformer(E, H, 1, 1, 16, batch_first=True)
    seen = []
    model.decoder.layers[0].multihead_attn.register_forward_hook(lambda *given: seen.append(1))
    before = {name: id(x) for name, x in model.named_parameters()}
    assert replace(model) is model and {name: id(x) for name, x in model.named_parameters()} == before
    assert sum(type(module) is MultiheadAttention for module in model.modules()) == 3
    model(torch.randn(B, S, E), torch.randn(B, L, E))
    assert seen
    shared = nn.MultiheadAttention(E, H)
    both = replace(nn.ModuleList([shared, shared]))
    assert both[0] is both[1] and replace(shared).in_proj_weight is shared.in_proj_weight
    with pytest.raises(ValueError, match="Linear has no torch.nn.MultiheadAttention"):
        replace(nn.Linear(1, 1))

    class Other(nn.MultiheadAttention):
        pass

    with pytest.raises(TypeError, match="replace: 0 is a Other"):
        replace(nn.ModuleList([Other(E, H)]))
    with pytest.raises(TypeError, match="got Other"):
        MultiheadAttention.of(Other(E, H))


REFUSED = {
    "a list of masks": ({"attn_mask": torch.ones(L, S + 1) > 0}, RuntimeError, "attn_mask must have the shape"),
    "ints": (
        {"key_padding_mask": torch.ones(B, S, dtype=torch.uint8)},
        AssertionError,
        "bool and floating types of key",
    ),
    "padding": ({"key_padding_mask": torch.ones(B, S + 1) > 0}, AssertionError, "key_padding_mask must have the shape"),
    "axes of padding": ({"key_padding_mask": torch.ones(S) > 0}, AssertionError, "key_padding_mask must be 2-D"),
    "axes": ({"attn_mask": torch.ones(B, H, L, S) > 0}, AssertionError, "attn_mask must be 2-D or 3-D"),
}


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_where_pytorch_raises_so_do_we(options, error, message):
    ours, theirs = pair()
    for module, match in ((theirs, None), (ours, message)):
        with pytest.raises(error, match=match):
            module(*inputs(theirs), **options)


def test_inputs_that_do_not_fit_are_refused():
    ours, _ = pair()
    query, key, value = inputs(ours)
    for given, message in (
        ((query[0], key, value), "must all be 2-D .unbatched. or 3-D"),
        ((query[..., :6], key, value), "query must have embedding dimension 8, got 6"),
        ((query, key, value[:4]), "key and value must agree in length and batch"),
    ):
        with pytest.raises(AssertionError, match=message):
            ours(*given)


def test_known_difference_rows_that_may_attend_to_nothing_are_not_nan():
    ours, theirs = pair()
    given = inputs(theirs)
    drop = torch.zeros(L, S, dtype=torch.bool)
    drop[2] = True
    found, expected = (run(made, given, attn_mask=drop) for made in (ours, theirs))
    assert all(x.isfinite().all() for x in found) and all(x.isnan().any() for x in expected[1:5])
    assert found[1][:, 2].eq(0).all()
    mean = MultiheadAttention.of(theirs, empty_rows="mean")(*given, attn_mask=drop)[1]
    within(mean[:, 2].detach(), torch.full((B, S), 1 / S), 0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_whole():
    torch._dynamo.reset()
    ours, _ = pair(batch_first=True)
    x, padding = torch.randn(B, S, E), masked()[2][1]
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for options in ({}, {"need_weights": False, "key_padding_mask": padding}):
        within(compiled(x, x, x, **options)[0].detach(), ours(x, x, x, **options)[0].detach(), LIMIT)
