"""PyTorch's module calls its layers: what wraps, hooks, parametrizes or moves an nn.Linear works in it too."""

import pytest
import torch

import maskattn_torch
from maskattn import masks, standards

LIMIT = standards.value("same.tiles")
X, MEMORY, VALUES = torch.randn(3, 2, 5, 12, generator=torch.Generator().manual_seed(0)).unbind()
FUSED, APART = {}, {"kdim": 10, "vdim": 11}
GIVEN = {
    "self": (FUSED, (X,), 1),
    "key": (FUSED, (X, MEMORY), 2),
    "query as value": (FUSED, (X, MEMORY, X), 2),
    "three": (FUSED, (X, MEMORY, VALUES), 3),
    "apart": (APART, (X, MEMORY[..., :10], VALUES[..., :11]), 1),
}
every_input = pytest.mark.parametrize(("options", "inputs", "calls"), GIVEN.values(), ids=GIVEN)


class Lora(torch.nn.Module):
    """In PEFT's shape: the weight of the layer below stays visible."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))

    def merged(self):
        layer = torch.nn.Linear(self.base_layer.in_features, self.base_layer.out_features)
        with torch.no_grad():
            layer.weight.copy_(self.base_layer.weight + self.up.weight @ self.down.weight)
            layer.bias.copy_(self.base_layer.bias)
        return layer


def module(**options):
    torch.manual_seed(1)
    return maskattn_torch.MultiHeadAttention(12, 3, **options)


def names(made):
    return [name for name, _ in made.named_children()]


def watched(inputs):
    """The same inputs, requiring gradients; one that is given twice stays one."""
    made = {id(x): x.clone().requires_grad_() for x in inputs}
    return [made[id(x)] for x in inputs]


def gradients(made, inputs):
    made(*inputs).square().sum().backward()
    return {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for n, p in made.named_parameters()}


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=LIMIT)


@every_input
def test_adapters_take_part_and_are_trained(options, inputs, calls):
    made, merged = module(**options), module(**options)
    for name in names(made):
        adapter = Lora(getattr(made, name))
        setattr(made, name, adapter)
        setattr(merged, name, adapter.merged())
    out = made(*inputs, mask=masks.Causal())
    close(out, merged(*inputs, mask=masks.Causal()))
    assert (out - module(**options)(*inputs, mask=masks.Causal())).abs().max() > 10 * LIMIT
    out.square().sum().backward()
    for name in names(made):
        assert getattr(made, name).up.weight.grad.any() and getattr(made, name).down.weight.grad.any()


@every_input
def test_hooks_of_each_layer_fire_once_for_each_input(options, inputs, calls):
    for name in names(module(**options)):
        made, seen = module(**options), []
        getattr(made, name).register_forward_pre_hook(lambda layer, given, seen=seen: seen.append("before"))
        getattr(made, name).register_forward_hook(lambda layer, given, out, seen=seen: seen.append("after"))
        getattr(made, name).register_full_backward_hook(lambda layer, d_in, d_out, seen=seen: seen.append("back"))
        out = made(*watched(inputs))
        out.sum().backward()
        close(out, module(**options)(*inputs))
        times = calls if name == "qkv" else 1
        assert seen == ["before", "after"] * times + ["back"] * times


def test_hooks_of_all_modules_see_the_layers():
    made, seen = module(), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda layer, given, out: seen.append(layer))
    try:
        made(X, MEMORY)
    finally:
        hook.remove()
    assert seen == [made.qkv, made.qkv, made.proj, made]


@every_input
def test_a_parametrized_weight_is_used_and_trained(options, inputs, calls):
    made, halved = module(**options), module(**options)
    for name in names(made):
        torch.nn.utils.parametrizations.weight_norm(getattr(made, name))
    close(made(*inputs), module(**options)(*inputs))
    with torch.no_grad():
        for name in names(made):
            getattr(made, name).parametrizations.weight.original0.mul_(0.5)
            getattr(halved, name).weight.mul_(0.5)
    close(made(*inputs), halved(*inputs))
    made(*inputs).square().sum().backward()
    assert all(p.grad is not None for p in made.parameters())


@every_input
def test_weights_brought_back_by_a_hook_or_by_a_replaced_forward(options, inputs, calls):
    """As accelerate does where weights are offloaded: meta between the calls."""
    made = module(**options)
    expected = made(*inputs)
    for name in names(made):
        layer = getattr(made, name)
        here, away = dict(layer.named_parameters()), {n: p.to("meta") for n, p in layer.named_parameters()}

        def forward(x, layer=layer, here=here):
            return torch.nn.functional.linear(x, here["weight"], here["bias"])

        layer.forward = forward
        for leaf, parameter in away.items():
            setattr(layer, leaf, torch.nn.Parameter(parameter))
    close(made(*inputs), expected)


def test_a_layer_of_another_kind_decides_what_it_takes():
    made = module()
    whole, out = made.qkv.bfloat16(), made.proj
    made.qkv = torch.nn.Sequential()
    made.qkv.forward = lambda x: whole(x.bfloat16()).float()
    made.proj = torch.nn.Sequential(out)
    assert made(X).dtype == torch.float32


def test_exact_refuses_by_name_whatever_is_more_than_a_weight():
    def wrapped(made):
        made.qkv = Lora(made.qkv)

    def hooked(made):
        made.qkv.register_forward_hook(lambda *given: None)

    def watched(made):
        made.qkv.register_full_backward_hook(lambda *given: None)

    def normed(made):
        torch.nn.utils.parametrizations.weight_norm(made.qkv)

    def replaced(made):
        made.qkv.forward = made.qkv.forward

    cases = {
        wrapped: "got Lora",
        hooked: "got one with hooks",
        watched: "got one with hooks",
        normed: "got ParametrizedLinear",
        replaced: "got one whose forward was replaced",
    }
    for change, says in cases.items():
        made = module()
        made(X, MEMORY, kernel="exact")
        change(made)
        made(X, MEMORY)
        with pytest.raises(ValueError, match=f"'exact' .*: qkv must be a plain nn.Linear, {says}.* another kernel"):
            made(X, MEMORY, kernel="exact")
    made = module(**APART)
    made.v_proj, made.proj = Lora(made.v_proj), Lora(made.proj)
    with pytest.raises(ValueError, match=r"(?s)v_proj must be .*Lora.*\n.* proj must be .*Lora"):
        made(*GIVEN["apart"][1], kernel="exact")


def test_the_seed_module_calls_its_layers_too():
    made = maskattn_torch.Attention(12, 3)
    before = made(X)
    made.qkv, made.proj = Lora(torch.nn.Linear(12, 36)), Lora(made.proj)
    after = made(X, torch.ones(2, 5))
    after.sum().backward()
    assert (after - before).abs().max() > 10 * LIMIT and made.qkv.up.weight.grad.any()


@pytest.mark.parametrize("inputs", [(X,), (X, MEMORY)], ids=["self", "cross"])
def test_plain_layers_give_the_bits_of_the_products_with_their_rows(inputs):
    made = module()
    linear, split = torch.nn.functional.linear, made.rows
    query, key = inputs[0], inputs[-1]
    if key is query:
        q, k, v = linear(query, made.qkv.weight, made.qkv.bias).split(split, -1)
    else:
        rows = zip((query, key, key), made.qkv.weight.split(split), made.qkv.bias.split(split), strict=True)
        q, k, v = (linear(x, w, b) for x, w, b in rows)
    heads = (x.reshape(2, 5, 3, 4) for x in (q, k, v))
    out = maskattn_torch.attention(*heads, masks.Causal()).flatten(2)
    assert torch.equal(made(*inputs, mask=masks.Causal()), linear(out, made.proj.weight, made.proj.bias))


@pytest.mark.parametrize("adapted", [False, True])
def test_compiled_in_one_graph(adapted):
    made = module()
    if adapted:
        made.qkv = Lora(made.qkv)
    with torch.no_grad():
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        for inputs in ((X,), (X, MEMORY)):
            close(compiled(*inputs), made(*inputs))


@pytest.fixture
def mesh():
    """One process that takes itself for many."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # of every nn.Linear with a batch: none is written to
@every_input
def test_sharded_layers_and_tensor_parallel_plans(options, inputs, calls, mesh):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plain, sharded, parallel = module(**options), module(**options), module(**options)
    for name in names(sharded):
        fully_shard(getattr(sharded, name), mesh=mesh)
    plan = {name: RowwiseParallel() if name == "proj" else ColwiseParallel() for name in names(parallel)}
    parallelize_module(parallel, mesh, plan)
    expected = gradients(plain, inputs)
    for made in (sharded, parallel):
        close(made(*inputs), plain(*inputs))
        found = gradients(made, inputs)
        assert list(found) == list(expected)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=0, atol=LIMIT * max(1, grad.abs().max()))
    with pytest.raises(ValueError, match="must be a plain nn.Linear"):
        made(*inputs, kernel="exact")
