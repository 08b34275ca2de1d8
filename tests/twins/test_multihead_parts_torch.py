"""PyTorch's module with parts, as modules of PyTorch are used: made, moved, copied, compiled, transformed."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import maskattn_torch
from maskattn import AttentionConfig, masks, standards
from maskattn.attention import KernelCannot
from maskattn.layer import (
    Clip,
    ContinuousTable,
    Cosine,
    DynamicNTK,
    ExtraKeys,
    Gate,
    Norm,
    Rotary,
    T5Table,
    Temperature,
    Yarn,
)
from maskattn_torch.layer import LAYER

LIMIT = standards.value("same.tiles")
MASK = masks.Causal() & masks.KeyPadding([9, 6])
LLAMA = {"rotary": Rotary(theta=100.0), "qk_norm": Norm()}
CONFIGS = {
    "llama": AttentionConfig(24, 4, num_kv_heads=2, qkv_bias=False, **LLAMA),
    "gated": AttentionConfig(
        24, 4, sinks=True, gate=Gate(bias=True), clip=Clip(0.5), temperature=Temperature(0.1, 2.0)
    ),
    "swin": AttentionConfig(24, 4, cosine=Cosine(), position_bias=ContinuousTable((3, 3), hidden=8)),
    "t5": AttentionConfig(24, 4, kdim=20, vdim=16, position_bias=T5Table(8, 6), scale=1.0),
    "interleaved": AttentionConfig(
        24,
        4,
        rotary=Rotary(width=4, pairs="interleaved", scaling=DynamicNTK(2.0, trained=5)),
        qk_norm=Norm("layer", over="all", scale="per_head", bias=True),
        extra_keys=ExtraKeys(),
    ),
}
every = pytest.mark.parametrize("name", CONFIGS)


def made(name, seed=0, **options):
    torch.manual_seed(seed)
    return maskattn_torch.MultiHeadAttention(CONFIGS[name], **options)


def inputs(name, length=9, **options):
    config = CONFIGS[name]
    rng = torch.Generator().manual_seed(1)
    widths = (config.embed_dim,) if config.kdim == config.embed_dim else (config.embed_dim, config.kdim, config.vdim)
    return [torch.randn(2, length, width, generator=rng).to(**options) for width in widths]


def mask_of(name):
    return None if name == "swin" else MASK


def close(one, other, limit=LIMIT):
    torch.testing.assert_close(one, other, rtol=0, atol=limit)


@every
def test_reset_parameters_begins_anew(name):
    module, other = made(name), made(name, seed=5)
    torch.manual_seed(0)
    other.reset_parameters()
    for key, x in module.state_dict().items():
        assert torch.equal(x, other.state_dict()[key]), key
    empty = made(name, device="meta").to_empty(device="cpu")
    for parameter in empty.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(0)
    empty.reset_parameters()
    skipped = torch.nn.utils.skip_init(maskattn_torch.MultiHeadAttention, CONFIGS[name])
    skipped.load_state_dict(module.state_dict())
    for found in (empty, skipped, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(found(*inputs(name), mask=mask_of(name)), module(*inputs(name), mask=mask_of(name)))
    assert all(x.dtype == torch.bfloat16 for x in made(name, dtype=torch.bfloat16).state_dict().values())


@every
def test_narrow_and_wide_modules(name):
    """In bfloat16 angles stay float32, and float64 is as good as it is elsewhere."""
    module = made(name)
    want = module(*inputs(name), mask=mask_of(name))
    double = copy.deepcopy(module).double()(*inputs(name, dtype=torch.float64), mask=mask_of(name))
    close(double.float(), want)
    narrow = copy.deepcopy(module).bfloat16()
    again = copy.deepcopy(narrow).float()
    x = inputs(name, dtype=torch.bfloat16)
    out = narrow(*x, mask=mask_of(name))
    assert out.dtype == torch.bfloat16
    close(out.float(), again(*(y.float() for y in x), mask=mask_of(name)), 16 * 2**-8 * want.abs().max().item())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(*inputs(name), mask=mask_of(name))
    assert mixed.dtype == torch.bfloat16
    close(mixed.float(), want, 16 * 2**-8 * want.abs().max().item())


def test_angles_of_far_positions_are_not_rounded_to_a_narrow_dtype():
    module = made("llama").bfloat16()
    x = inputs("llama", dtype=torch.bfloat16)[0]
    far = module(x, positions=torch.arange(9) + 40001)
    near = module(x, positions=torch.arange(9) + 1)
    close(far.float(), near.float(), 2**-6)


@every
def test_derivatives_and_checkpoints(name):
    module = made(name)
    x = [y.requires_grad_() for y in inputs(name)]

    def gradients(call):
        module.zero_grad()
        call(*x).square().sum().backward()
        return {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}

    plain = gradients(lambda *x: module(*x, mask=mask_of(name)))
    saved = gradients(lambda *x: checkpoint(lambda *x: module(*x, mask=mask_of(name)), *x, use_reentrant=False))
    assert plain.keys() == saved.keys() == dict(module.named_parameters()).keys()
    for key, grad in plain.items():
        assert torch.equal(grad, saved[key])
        assert key.endswith(("k_proj.bias", "gate.bias")) or grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["llama", "gated"])
def test_second_derivatives(name):
    module = made(name).double()
    x = inputs(name, length=3, dtype=torch.float64)[0][:1].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: module(x, kernel="reference", is_causal=True), (x,))


@pytest.mark.parametrize("name", ["llama", pytest.param("interleaved", marks=pytest.mark.slow)])
def test_compiled_whole_and_once_for_all_lengths(name):
    module = made(name)
    torch._dynamo.reset()
    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: module(x, is_causal=True), backend=count, fullgraph=True)
    for length in (9, 12, 17, 23):
        x = inputs(name, length)
        close(compiled(*x), module(*x, is_causal=True))
    assert count.frame_count == 2  # the first length, and all others


def test_exported_with_any_length():
    module = made("llama").eval()
    length = torch.export.Dim("length", min=2, max=64)
    shapes = {"x": {1: length}}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return self.inner(x, is_causal=True)

    program = torch.export.export(Model(), (inputs("llama")[0],), dynamic_shapes=shapes)
    for n in (5, 31):
        x = inputs("llama", n)[0]
        close(program.module()(x), module(x, is_causal=True))


def test_mapped_over_batches():
    module = made("llama")
    x = torch.randn(3, 2, 9, 24, generator=torch.Generator().manual_seed(2))
    want = torch.stack([module(y, is_causal=True) for y in x])
    close(torch.func.vmap(lambda y: module(y, is_causal=True, kernel="reference"))(x), want)


def test_adapters_and_hooks_on_the_gate_take_part():
    module, x = made("gated"), inputs("gated")[0]
    before = module(x)
    down, up = torch.nn.Linear(24, 2), torch.nn.Linear(2, 24)

    class Lora(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down, self.up = down, up

        weight = property(lambda self: self.base.weight)
        bias = property(lambda self: self.base.bias)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    module.gate = Lora(module.gate)
    assert (module(x) - before).abs().max() > 10 * LIMIT
    module(x).sum().backward()
    assert down.weight.grad.abs().max() > 0
    with pytest.raises(KernelCannot, match="gate must be a plain nn.Linear, got Lora"):
        module(x, kernel="exact")


def test_dropout_may_be_shared():
    config = AttentionConfig(24, 4, dropout_rate=0.5)
    torch.manual_seed(0)
    module = maskattn_torch.MultiHeadAttention(config, dropout_broadcast=("batch", "heads"))
    x = inputs("llama")[0]
    _, weights = module(x, dropout_key=3, return_weights=True)
    kept = weights != 0
    assert torch.equal(kept, kept[:1, :1].expand_as(kept)) and not kept.all()
    with pytest.raises(ValueError, match="dropout_broadcast may hold batch and heads"):
        maskattn_torch.MultiHeadAttention(config, dropout_broadcast=("rows",))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_leading_axes_take_masks_positions_and_keys_of_dropout_with_them(name):
    """[2, 3, L, E] with everything by row is [6, L, E]; no axis at all is one row; L is not S."""
    config = CONFIGS[name].replace(dropout_rate=0.3)
    torch.manual_seed(0)
    module = maskattn_torch.MultiHeadAttention(config)
    rng = torch.Generator().manual_seed(3)
    query = torch.randn(2, 3, 5, 24, generator=rng)
    key, value = (torch.randn(2, 3, 7, width, generator=rng) for width in (config.kdim, config.vdim))
    given = {"mask": masks.KeyPadding([7, 6, 5, 4, 3, 2]), "dropout_key": 4, "return_weights": True, "return_lse": True}
    rows = {}
    if config.rotary is not None:
        rows["positions"] = tuple(torch.randint(0, 50, (2, 3, n), generator=rng) for n in (5, 7))
        rows["bias"] = torch.randn(2, 3, 1, 5, 7, generator=rng)
    flat = {"positions": lambda pair: tuple(x.flatten(0, 1) for x in pair), "bias": lambda x: x.flatten(0, 1)}
    found = module(query, key, value, **given, **rows)
    want = module(*(x.flatten(0, 1) for x in (query, key, value)), **given, **{n: flat[n](x) for n, x in rows.items()})
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one.flatten(0, 1), other)
    alone = module(query[0, 0], key[0, 0], value[0, 0], deterministic=True)
    close(alone, module(query[:1, 0], key[:1, 0], value[:1, 0], deterministic=True)[0])


TURNED = {
    "half": Rotary(theta=100.0),
    "part": Rotary(theta=100.0, width=4, scaling=Yarn(4.0, trained=8)),
    "interleaved": Rotary(theta=100.0, width=4, pairs="interleaved"),
    "following": Rotary(theta=100.0, scaling=DynamicNTK(2.0, trained=5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TURNED)
def test_positions_that_are_counted_turn_as_those_that_are_given(name, dtype):
    rotary, width = TURNED[name], TURNED[name].turned(6)
    for first, length in ((0, 9), (3, 300), (250, 1), (299, 2)):  # more than are kept from the start
        # of odd columns: their pairs are no complex numbers as they lie
        x = torch.randn(2, length, 25 + first % 2, generator=torch.Generator().manual_seed(3), dtype=dtype)[
            ..., first % 2 :
        ][..., :24]
        heads, positions = x.unflatten(-1, (4, 6)), torch.arange(first, first + length)
        frequencies = LAYER.frequencies(rotary, 6, 300, positions[None])
        angles = (positions.float()[:, None] * frequencies).to(dtype)[:, None]
        turn = torch.polar(torch.full_like(angles, rotary.factor), angles)
        halves = heads[..., :width].unflatten(-1, (2, -1) if rotary.pairs == "half" else (-1, 2))
        axis = -2 if rotary.pairs == "half" else -1
        wanted = torch.complex(*halves.unbind(axis)) * turn
        wanted = torch.stack([wanted.real, wanted.imag], axis).flatten(-2)
        counted = LAYER.counted(rotary, 6, first, length, heads)
        assert (counted is None) == (name == "following")
        for turns in (counted, LAYER.turns(rotary, positions[None], frequencies, heads)):
            if turns is not None:
                made = LAYER.rotate(heads, turns, rotary)
                close(made[..., :width], wanted)
                assert torch.equal(made[..., width:], heads[..., width:])


def test_turns_first_made_in_inference_mode_serve_training():
    module = maskattn_torch.MultiHeadAttention(24, 4, rotary=Rotary(theta=101.0))
    x = torch.randn(2, 9, 24)
    with torch.inference_mode():
        want = module(x)
    out = module(x)
    out.sum().backward()
    close(out, want)
