"""Live modules to and from canonical tensors: ours and the frameworks' own."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.layer import ExtraKeys
from tests.frameworks import flax, jax, jnp, maskattn_jax, maskattn_torch, nnx, torch
from tests.twin import same_tensors

GROUPED = AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, out_dim=11, out_bias=False)
CROSS = AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, kdim=11, vdim=13, out_dim=17)
PLAIN = AttentionConfig(35, 5)


def canonical(config, dtype=np.float32, seed=0):
    """Random bits: what is moved by copying keeps them, what is computed does not."""
    draw = np.random.default_rng(seed)
    out = {}
    for name, shape in layouts.get("canonical").shapes(config).items():
        bits = draw.integers(0, 256, size=int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=np.uint8)
        out[name] = bits.view(dtype).reshape(shape)
    return out


def assert_same(left, right):
    same_tensors(left, right)
    assert all(isinstance(array, np.ndarray) and array.flags.c_contiguous for array in left.values())


def torch_mha(config, dtype):
    widths = {"kdim": config.kdim, "vdim": config.vdim}
    return torch.nn.MultiheadAttention(config.embed_dim, config.num_heads, bias=config.qkv_bias, dtype=dtype, **widths)


def torch_twin(config, dtype):
    return maskattn_torch.MultiHeadAttention(config, dtype=dtype)


TORCH = {
    "twin, grouped": (torch_twin, GROUPED),
    "twin, cross": (torch_twin, CROSS),
    "torch.nn": (torch_mha, PLAIN),
    "torch.nn, no bias": (torch_mha, AttentionConfig(35, 5, qkv_bias=False, out_bias=False)),
    "torch.nn, cross": (torch_mha, AttentionConfig(35, 5, kdim=11, vdim=13)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("build", "config"), TORCH.values(), ids=TORCH)
def test_torch_modules(build, config, dtype):
    module = build(config, getattr(torch, dtype))
    before = {name: parameter for name, parameter in module.named_parameters()}
    tensors = canonical(config, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    maskattn_torch.params.load(module, tensors)
    dumped = maskattn_torch.params.dump(module)
    assert_same(dumped, tensors)
    assert all(parameter is before[name] for name, parameter in module.named_parameters())  # in place
    next(iter(dumped.values()))[...] = 0
    assert_same(maskattn_torch.params.dump(module), tensors)


def nnx_twin(config, dtype):
    return maskattn_jax.MultiHeadAttention(config, param_dtype=dtype, rngs=nnx.Rngs(0))


def nnx_mha(config, dtype):
    widths = {"in_kv_features": config.kdim, "num_kv_heads": config.num_kv_heads, "out_features": config.out_dim}
    options = {"use_bias": config.qkv_bias, "param_dtype": dtype, "decode": False, "rngs": nnx.Rngs(0)}
    return nnx.MultiHeadAttention(config.num_heads, config.embed_dim, **widths, **options)


NNX = {
    "twin, grouped": (nnx_twin, GROUPED),
    "twin, cross": (nnx_twin, CROSS),
    "flax": (nnx_mha, PLAIN),
    "flax, no bias": (nnx_mha, AttentionConfig(35, 5, qkv_bias=False, out_bias=False)),
    "flax, grouped, cross": (nnx_mha, AttentionConfig(42, 6, num_kv_heads=2, kdim=11, vdim=11, out_dim=13)),
}


@pytest.mark.parametrize(("build", "config"), NNX.values(), ids=NNX)
def test_nnx_modules(build, config):
    dtype = np.dtype(ml_dtypes.bfloat16 if config is GROUPED else np.float32)
    module = build(config, dtype)
    tensors = canonical(config, dtype)
    assert maskattn_jax.params.load(module, tensors) is None
    assert_same(maskattn_jax.params.dump(module), tensors)
    kept = {name: array.copy() for name, array in tensors.items()}
    for array in tensors.values():  # the module's memory is its own
        array[...] = 0
    assert_same(maskattn_jax.params.dump(module), kept)


def test_nnx_float64():
    with jax.enable_x64(True):
        module = nnx_twin(GROUPED, np.float64)
        maskattn_jax.params.load(module, canonical(GROUPED, np.float64))
        assert_same(maskattn_jax.params.dump(module), canonical(GROUPED, np.float64))


@pytest.mark.parametrize("bound", [False, True])
def test_what_is_loaded_is_bound_to_a_device_where_the_parameters_were(bound):
    module = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    if bound:
        nnx.update(module, jax.device_put(nnx.state(module), jax.devices()[0]))
    maskattn_jax.params.load(module, maskattn_jax.params.dump(module))
    assert {x.committed for x in jax.tree.leaves(nnx.state(module, nnx.Param))} == {bound}


def test_linen_variables():
    tensors = canonical(GROUPED)
    for module in (maskattn_jax.linen.MultiHeadAttention(GROUPED), GROUPED):
        variables = maskattn_jax.params.load(module, tensors)
        assert set(variables) == {"params"} and variables["params"]["query"]["kernel"].shape == (30, 6, 7)
        assert_same(maskattn_jax.params.dump(variables), tensors)
        assert_same(maskattn_jax.params.dump(variables["params"]), tensors)
    module = flax.linen.MultiHeadDotProductAttention(num_heads=5)
    x = jnp.ones((1, 2, 35))
    variables = module.init(jax.random.key(0), x)
    moved = maskattn_jax.params.load(module, maskattn_jax.params.dump(variables))
    assert jax.tree.structure(moved) == jax.tree.structure(variables)
    assert np.asarray(module.apply(moved, x)).tobytes() == np.asarray(module.apply(variables, x)).tobytes()


def test_seed_modules():
    for with_qkv in (True, False):
        ours = maskattn_torch.Attention(35, num_heads=5, with_qkv=with_qkv)
        theirs = maskattn_jax.Attention(35, num_heads=5, with_qkv=with_qkv, rngs=nnx.Rngs(0))
        tensors = maskattn_torch.params.dump(ours)
        assert list(tensors) == (
            ["query.kernel", "key.kernel", "value.kernel", "out.kernel", "out.bias"] if with_qkv else []
        )
        maskattn_jax.params.load(theirs, tensors)
        assert_same(maskattn_jax.params.dump(theirs), tensors)
        maskattn_torch.params.load(ours, tensors)


def test_from_framework_to_framework_without_a_file():
    x = np.random.default_rng(0).standard_normal((2, 3, 35)).astype(np.float32)
    source = torch.nn.MultiheadAttention(35, 5, batch_first=True)
    target = nnx.MultiHeadAttention(5, 35, decode=False, precision="highest", rngs=nnx.Rngs(0))
    maskattn_jax.params.load(target, maskattn_torch.params.dump(source))
    with torch.no_grad():
        expected = source(*[torch.from_numpy(x)] * 3, need_weights=False)[0].numpy()
    np.testing.assert_allclose(
        np.asarray(target(x)), expected, rtol=standards.value("same.tiles"), atol=standards.value("same.compiled")
    )


def loaders():
    flax_linen = maskattn_jax.linen.MultiHeadAttention(PLAIN)
    return {
        "torch twin": (maskattn_torch.params, torch_twin(PLAIN, torch.float32)),
        "torch.nn": (maskattn_torch.params, torch_mha(PLAIN, torch.float32)),
        "nnx twin": (maskattn_jax.params, nnx_twin(PLAIN, jnp.float32)),
        "nnx flax": (maskattn_jax.params, nnx_mha(PLAIN, jnp.float32)),
        "linen twin": (maskattn_jax.params, flax_linen),
        "linen flax": (maskattn_jax.params, flax.linen.MultiHeadDotProductAttention(num_heads=5)),
    }


@pytest.mark.parametrize("kind", ["torch twin", "torch.nn", "nnx twin", "nnx flax", "linen twin", "linen flax"])
def test_strict_and_nothing_written_in_part(kind):
    params, module = loaders()[kind]
    live = "linen" not in kind
    before = params.dump(module) if live else None
    tensors = canonical(PLAIN)
    bad = tensors | {"key.bias": tensors["key.bias"].T, "value.bias": [0.0], "gates.kernel": np.ones(3)}
    bad["out.bias"] = bad["out.bias"].astype(ml_dtypes.bfloat16)
    del bad["query.bias"]
    with pytest.raises(ValueError) as caught:
        params.load(module, bad)
    for part in (
        "query.bias: missing, expected shape [5, 7]",
        "key.bias: expected shape [5, 7], got [7, 5]",
        "value.bias: expected a NumPy array, got builtins.list",
        "gates.kernel: left over",
        "out.bias: the module holds dtype float32, got bfloat16",
    ):
        assert part in str(caught.value), part
    wide = {name: np.ones(array.shape, np.float64) for name, array in tensors.items()}
    with pytest.raises(ValueError, match=r"(?s)query\.kernel.*float64.*out\.bias.*float64"):
        params.load(module, wide)
    with pytest.raises(TypeError, match="tensors must be a mapping"):
        params.load(module, None)
    if live:
        assert_same(params.dump(module), before)


def test_modules_not_known_are_refused_by_name():
    with pytest.raises(TypeError, match=r"module must be .*, got torch\.nn\.modules\.linear\.Linear"):
        maskattn_torch.params.dump(torch.nn.Linear(2, 3))
    with pytest.raises(TypeError, match=r"got builtins\.int"):
        maskattn_torch.params.load(3, {})
    with pytest.raises(TypeError, match=r"got builtins\.int"):
        maskattn_jax.params.load(3, {})
    with pytest.raises(TypeError, match="a Linen module holds no parameters, pass its variables"):
        maskattn_jax.params.dump(flax.linen.MultiHeadDotProductAttention(num_heads=5))
    with pytest.raises(TypeError, match=r"got flax\.linen\.linear\.Dense"):
        maskattn_jax.params.load(flax.linen.Dense(3), {})


def test_norms_and_learned_keys_are_kept_and_need_a_place():
    mha = torch.nn.MultiheadAttention(35, 5, add_bias_kv=True)
    extras = maskattn_torch.params.dump(mha)
    assert extras["bias_k"].tobytes() == mha.bias_k.detach().numpy().tobytes() and extras["bias_v"].shape == (5, 7)
    other = torch.nn.MultiheadAttention(35, 5, add_bias_kv=True)
    maskattn_torch.params.load(other, extras)
    assert all(torch.equal(a, b) for a, b in zip(mha.parameters(), other.parameters(), strict=True))
    for module in (torch.nn.MultiheadAttention(35, 5), maskattn_torch.MultiHeadAttention(PLAIN)):
        with pytest.raises(ValueError, match=r"(?s)bias_k.*bias_v"):
            maskattn_torch.params.load(module, extras)

    nnx_module = nnx.MultiHeadAttention(5, 35, decode=False, normalize_qk=True, rngs=nnx.Rngs(0))
    norms = maskattn_jax.params.dump(nnx_module)
    assert norms["key_norm.scale"].shape == (7,)
    norms["query_norm.scale"] = np.arange(7, dtype=np.float32)
    maskattn_jax.params.load(nnx_module, norms)
    assert nnx_module.query_ln.scale.get_value().tolist() == list(range(7))
    linen = flax.linen.MultiHeadDotProductAttention(num_heads=5, normalize_qk=True)
    variables = maskattn_jax.params.load(linen, norms)
    assert maskattn_jax.params.dump(variables)["query_norm.scale"].tolist() == list(range(7))
    with pytest.raises(ValueError, match="query_norm.scale: normalize_qk is False, so the module has no such norm"):
        maskattn_jax.params.load(flax.linen.MultiHeadDotProductAttention(num_heads=5), norms)
    with pytest.raises(ValueError, match="key_norm.scale: normalize_qk is True, so the module has this norm"):
        maskattn_jax.params.load(linen, canonical(PLAIN))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_keys_that_pytorchs_module_adds_are_in_its_configuration(learned, zero):
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(12, 4, add_bias_kv=learned, add_zero_attn=zero, batch_first=True)
    config = maskattn_torch.params.config_of(theirs)
    assert config.extra_keys == (ExtraKeys(learned, zero) if learned or zero else None)
    ours = maskattn_torch.MultiHeadAttention(config)
    maskattn_torch.params.load(ours, maskattn_torch.params.dump(theirs))
    x = torch.randn(2, 5, 12)
    assert torch.all((ours(x) - theirs(x, x, x)[0]).abs() <= standards.value("same.tiles"))
    again = torch.nn.MultiheadAttention(12, 4, add_bias_kv=learned, add_zero_attn=zero)
    maskattn_torch.params.load(again, maskattn_torch.params.dump(ours))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))


def test_what_has_no_canonical_form_is_refused_by_name():
    with pytest.raises(ValueError, match=r"are not those of a multi-head attention: query/kernel is missing"):
        maskattn_jax.params.dump({"params": {"kernel": np.ones(3)}})
    with pytest.raises(ValueError, match="meta device"):
        maskattn_torch.params.load(maskattn_torch.MultiHeadAttention(PLAIN, device="meta"), canonical(PLAIN))


def test_config_of():
    assert maskattn_torch.params.config_of(torch_twin(GROUPED, None)) is GROUPED
    assert (
        maskattn_torch.params.config_of(torch_mha(CROSS_MHA := AttentionConfig(35, 5, kdim=11, vdim=13), None))
        == CROSS_MHA
    )
    found = maskattn_jax.params.config_of(nnx_mha(AttentionConfig(42, 6, num_kv_heads=2, out_dim=13), jnp.float32))
    assert (found.num_heads, found.num_kv_heads, found.head_dim, found.out_dim) == (6, 2, 7, 13)
