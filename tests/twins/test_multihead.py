"""MultiHeadAttention in PyTorch, NNX and Linen: other people's checkpoints load unconverted, and all three agree."""

import numpy as np
import pytest

from maskattn import masks, standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.frameworks import flax, jax, jnp, maskattn_jax, maskattn_torch, nnx, optional, torch

pytestmark = pytest.mark.hurried

linen = optional("maskattn_jax.linen")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 7, 12)).astype(np.float32)
MEMORY = RNG.standard_normal((2, 5, 10)).astype(np.float32)
VALUES = RNG.standard_normal((2, 5, 11)).astype(np.float32)
LENGTHS = np.array([4, 7])
MASK = masks.KeyPadding(LENGTHS) & masks.Causal(2)

CONFIGS = {
    "plain": AttentionConfig(12, 3),
    "grouped": AttentionConfig(12, 6, num_kv_heads=2, head_dim=5, v_head_dim=3, out_dim=8, out_bias=False, scale=0.3),
    "no bias": AttentionConfig(12, 4, num_kv_heads=1, qkv_bias=False, empty_rows="mean"),
    "cross": AttentionConfig(12, 3, kdim=10, vdim=11),
    "capped": AttentionConfig(12, 3, num_kv_heads=1, softcap=0.4, sinks=True),
    "bare": AttentionConfig(12, 3, project=False),
}


class TimmAttention(torch.nn.Module):
    """timm's attention of a vision transformer, from its published definition: names, order and arithmetic."""

    def __init__(self, dim, num_heads, qkv_bias=True):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = torch.nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, x, attn_mask=None):
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(out.transpose(1, 2).reshape(batch, length, dim))


def canonical(config, seed=1):
    rng = np.random.default_rng(seed)
    c = config
    shapes = {
        "query.kernel": (c.embed_dim, c.num_heads, c.head_dim),
        "key.kernel": (c.kdim, c.num_kv_heads, c.head_dim),
        "value.kernel": (c.vdim, c.num_kv_heads, c.v_head_dim),
        "out.kernel": (c.num_heads, c.v_head_dim, c.out_dim),
    }
    if c.qkv_bias:
        shapes |= {f"{n}.bias": shapes[f"{n}.kernel"][1:] for n in ("query", "key", "value")}
    if c.out_bias:
        shapes["out.bias"] = (c.out_dim,)
    if c.sinks:
        shapes["sinks"] = (c.num_heads,)
    return (
        {name: rng.uniform(-0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()} if c.project else {}
    )


def build(config, weights):
    """The three modules with the same weights, each as a function of NumPy arrays -> NumPy."""
    module = maskattn_torch.MultiHeadAttention(config)
    nnx_module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(params=0))
    nnx_module.eval()
    tree = {}
    for name, x in weights.items():
        *parts, leaf = name.split(".")
        (tree.setdefault(*parts, {}) if parts else tree)[leaf] = jnp.asarray(x)
    if config.project:
        tensors = layouts.get("maskattn-torch").from_canonical(weights, config)
        module.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
        nnx.update(nnx_module, tree)
    linen_module = linen.MultiHeadAttention(config=config)

    def of_torch(*inputs, **options):
        return module(*(torch.tensor(x) for x in inputs), **options).detach().numpy()

    def of_nnx(*inputs, **options):
        return np.asarray(nnx_module(*inputs, **options))

    def of_linen(*inputs, **options):
        return np.asarray(linen_module.apply({"params": tree}, *inputs, **options))

    return of_torch, of_nnx, of_linen


def of(name):
    """The inputs and the mask of a configuration."""
    return ((X, MEMORY, VALUES), masks.KeyPadding(np.array([3, 5]))) if name == "cross" else ((X,), MASK)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_three_modules_agree_with_the_oracle(name):
    config, (inputs, mask) = CONFIGS[name], of(name)
    weights = canonical(config)
    modules = build(config, weights)
    key, value = (MEMORY, VALUES) if name == "cross" else (X, X)
    allowed = mask.dense(7, key.shape[1], 2)
    if config.project:
        options = {"key": key, "value_input": value, **config.attention_options()}
        want = standards.module_oracle(X, weights, allowed, **options)
        limit = standards.module_limit(X, weights, allowed, "float32", **options)
        for module in modules:
            got = module(*inputs, mask=mask)
            assert got.dtype == np.float32 and got.shape == (2, 7, config.out_dim)
            assert np.all(np.abs(got - want) <= limit)
    else:
        q = torch.tensor(X).reshape(2, 7, 3, 4)
        want = maskattn_torch.attention(q, q, q, mask).reshape(2, 7, 12).numpy()
        assert np.array_equal(modules[0](*inputs, mask=mask), want)


#: In JAX exact mode is compiled for each: this one stands for all, beside the parity suite's.
EXACT = ("cross",)


@pytest.mark.parametrize(
    "name", [*EXACT, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in EXACT)]
)
def test_in_exact_mode_the_three_modules_agree_bit_for_bit(name):
    (inputs, mask), modules = of(name), build(CONFIGS[name], canonical(CONFIGS[name]))
    exact = [module(*inputs, mask=mask, kernel="exact") for module in modules]
    assert exact[0].tobytes() == exact[1].tobytes() == exact[2].tobytes()


@pytest.mark.parametrize("change", [{"softcap": None}, {"sinks": False}], ids=["softcap", "sinks"])
def test_softcap_and_sinks_change_what_a_module_gives(change):
    config, weights = CONFIGS["capped"], canonical(CONFIGS["capped"])
    less = config.replace(**change)
    fewer = {name: x for name, x in weights.items() if name != "sinks" or less.sinks}
    for with_both, without in zip(build(config, weights), build(less, fewer), strict=True):
        assert np.abs(with_both(X) - without(X)).max() > standards.value("tier2.base") * standards.eps("float32")


def test_modules_are_made_from_sizes_as_from_a_configuration():
    config = AttentionConfig(12, 6, num_kv_heads=2, softcap=3.0, sinks=True, dropout_rate=0.1)
    sizes = {"num_kv_heads": 2, "softcap": 3.0, "sinks": True, "dropout_rate": 0.1}
    makers = {
        "torch": maskattn_torch.MultiHeadAttention,
        "nnx": lambda *sizes, **options: maskattn_jax.MultiHeadAttention(*sizes, **options, rngs=nnx.Rngs(0)),
        "linen": linen.MultiHeadAttention,
    }
    for make in makers.values():
        for module in (make(12, 6, **sizes), make(embed_dim=12, num_heads=6, **sizes), make(12, num_heads=6, **sizes)):
            assert module.config == config == make(config).config == make(config=config).config
        with pytest.raises(TypeError, match="num_heads must not be given beside a config"):
            make(config, num_heads=6)
        with pytest.raises(TypeError, match="or embed_dim and num_heads, got embed_dim 12"):
            make(12)
        with pytest.raises(TypeError, match="embed_dim"):
            make(12, 6, embed_dim=12)
        with pytest.raises(TypeError, match="got in_features 12, num_heads 6; modules with Flax's arguments are in"):
            make(num_heads=6, in_features=12)
        with pytest.raises(ValueError, match="must be at least num_heads, got 6 and 12: embed_dim is the first"):
            make(6, 12)
        with pytest.raises(TypeError, match="dropout"):
            make(12, 6, dropout=0.1)
        with pytest.raises(ValueError, match="num_heads 5"):
            make(12, 5)
    assert linen.MultiHeadAttention(config, jnp.bfloat16) == linen.MultiHeadAttention(
        12, 6, **sizes, dtype=jnp.bfloat16
    )


def test_sinks_are_zeros_at_first_and_of_the_dtype_of_the_parameters():
    config = AttentionConfig(12, 3, sinks=True)
    ours = maskattn_torch.MultiHeadAttention(config, dtype=torch.bfloat16)
    assert list(ours.state_dict())[0] == "sinks" and ours.sinks.dtype == torch.bfloat16
    assert ours.sinks.tolist() == [0.0, 0.0, 0.0]
    module = maskattn_jax.MultiHeadAttention(config, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert module.sinks[...].dtype == jnp.bfloat16 and module.sinks[...].tolist() == [0.0, 0.0, 0.0]
    variables = linen.MultiHeadAttention(config, param_dtype=jnp.bfloat16).init(
        jax.random.key(0), jnp.zeros((1, 2, 12))
    )
    assert variables["params"]["sinks"].dtype == jnp.bfloat16 and not variables["params"]["sinks"].any()
    assert "sinks" not in nnx.to_pure_dict(nnx.state(maskattn_jax.MultiHeadAttention(12, 3, rngs=nnx.Rngs(0))))


def test_a_state_dict_of_timm_loads_as_it_is():
    theirs = TimmAttention(12, 3)
    ours = maskattn_torch.MultiHeadAttention(AttentionConfig(12, 3))
    assert ours.load_state_dict(theirs.state_dict(), strict=True) == ([], [])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    allowed = masks.KeyPadding(LENGTHS).dense(7, 7, 2)
    got = ours(torch.tensor(X), mask=masks.KeyPadding(LENGTHS)).detach().numpy()
    want = theirs(torch.tensor(X), torch.tensor(allowed)).detach().numpy()
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    weights = layouts.get("timm").to_canonical(tensors, AttentionConfig(12, 3))
    limit = standards.module_limit(X, weights, allowed, "float32")
    assert np.all(np.abs(got - want) <= standards.value("module.peer") * limit)


@pytest.mark.parametrize("kv_heads", [3, 1])
def test_the_state_of_flax_nnx_loads_as_it_is(kv_heads):
    config = AttentionConfig(12, 3, num_kv_heads=kv_heads)
    theirs = nnx.MultiHeadAttention(3, 12, num_kv_heads=kv_heads, decode=False, rngs=nnx.Rngs(7))
    ours = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(7))
    mine, other = (nnx.to_pure_dict(nnx.state(m)) for m in (ours, theirs))
    assert jax.tree.structure(mine) == jax.tree.structure(other)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, other))), "the same numbers from the same rngs"
    theirs.key.bias.set_value(jnp.asarray(RNG.standard_normal((kv_heads, 4)), jnp.float32))
    nnx.update(ours, nnx.state(theirs))
    check_flax(ours(X, mask=masks.KeyPadding(LENGTHS)), theirs, nnx.to_pure_dict(nnx.state(theirs)))


def test_the_variables_of_flax_linen_load_as_they_are():
    theirs = flax.linen.MultiHeadDotProductAttention(3)
    variables = theirs.init(jax.random.key(7), X)
    ours = linen.MultiHeadAttention(config=AttentionConfig(12, 3))
    mine = ours.init(jax.random.key(7), X)
    assert jax.tree.structure(mine) == jax.tree.structure(variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, variables))), "the same numbers from the same key"
    exact = ours.init(jax.random.key(7), X, kernel="exact")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, exact, variables)))
    got = ours.apply(variables, X, mask=masks.KeyPadding(LENGTHS))
    check_flax(got, lambda x, mask: theirs.apply(variables, x, mask=mask), variables["params"])


def check_flax(got, theirs, parameters):
    allowed = masks.KeyPadding(LENGTHS).dense(7, 7, 2)
    want = theirs(X, mask=allowed)
    weights = {f"{name}.{leaf}": np.asarray(x) for name, leaves in parameters.items() for leaf, x in leaves.items()}
    limit = standards.module_limit(X, weights, allowed, "float32")
    assert np.all(np.abs(np.asarray(got) - np.asarray(want)) <= standards.value("module.peer") * limit)


def test_parameter_names_and_shapes():
    config = CONFIGS["grouped"]
    shapes = {n: tuple(x.shape) for n, x in maskattn_torch.MultiHeadAttention(config).state_dict().items()}
    assert shapes == {"qkv.weight": (46, 12), "qkv.bias": (46,), "proj.weight": (8, 18)}
    shapes = {n: tuple(x.shape) for n, x in maskattn_torch.MultiHeadAttention(CONFIGS["cross"]).state_dict().items()}
    assert {n: s for n, s in shapes.items() if n.endswith("weight")} == {
        "q_proj.weight": (12, 12),
        "k_proj.weight": (12, 10),
        "v_proj.weight": (12, 11),
        "proj.weight": (12, 12),
    }
    state = nnx.to_pure_dict(nnx.state(maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))))
    assert jax.tree.map(jnp.shape, state) == {
        "query": {"kernel": (12, 6, 5), "bias": (6, 5)},
        "key": {"kernel": (12, 2, 5), "bias": (2, 5)},
        "value": {"kernel": (12, 2, 3), "bias": (2, 3)},
        "out": {"kernel": (6, 3, 8)},
    }
    assert not maskattn_torch.MultiHeadAttention(CONFIGS["bare"]).state_dict()


def test_self_attention_and_cross_attention_use_the_same_rows_of_the_fused_weight():
    module = maskattn_torch.MultiHeadAttention(AttentionConfig(12, 3))
    x = torch.tensor(X)
    limit = standards.value("same.tiles")
    torch.testing.assert_close(module(x), module(x, x.clone(), x.clone()), rtol=0, atol=limit)
    torch.testing.assert_close(module(x, x[:, :4]), module(x, mask=masks.KeyPadding([4])), rtol=0, atol=limit)


def test_dtypes_follow_each_ecosystem():
    config = CONFIGS["plain"]
    module = maskattn_torch.MultiHeadAttention(config, dtype=torch.bfloat16)
    assert module(torch.tensor(X).to(torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="query is torch.float32, but the parameters are torch.bfloat16"):
        module(torch.tensor(X))
    plain = maskattn_torch.MultiHeadAttention(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain(torch.tensor(X)).dtype == torch.bfloat16
        assert plain(torch.tensor(X).bfloat16(), torch.tensor(X), kernel="exact").dtype == torch.bfloat16
    assert maskattn_torch.MultiHeadAttention(config, device="meta").proj.weight.is_meta
    module = maskattn_jax.MultiHeadAttention(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert module(X).dtype == jnp.bfloat16 and module.query.kernel.dtype == jnp.float32
    module = maskattn_jax.MultiHeadAttention(config, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    assert module.query.kernel.dtype == jnp.float16 and module(X).dtype == jnp.float32


@pytest.mark.parametrize("kernel", ["reference", "exact"])
def test_gradients_reach_every_parameter_and_agree(kernel):
    config = CONFIGS["grouped"]
    weights = canonical(config)
    module = maskattn_torch.MultiHeadAttention(config)
    tensors = layouts.get("maskattn-torch").from_canonical(weights, config)
    module.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()})
    module(torch.tensor(X), mask=MASK, kernel=kernel).square().sum().backward()
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    gradients = layouts.get("maskattn-torch").to_canonical(gradients, config)
    ours = linen.MultiHeadAttention(config=config)
    tree = {}
    for name, x in weights.items():
        part, leaf = name.split(".")
        tree.setdefault(part, {})[leaf] = x

    @jax.jit
    def gradient(tree):
        return jax.grad(lambda p: (ours.apply({"params": p}, X, mask=MASK, kernel=kernel) ** 2).sum())(tree)

    for name, leaves in gradient(tree).items():
        for leaf, x in leaves.items():
            got, want = np.asarray(x), gradients[f"{name}.{leaf}"]
            if kernel == "exact":
                assert got.tobytes() == want.tobytes()
            limit = standards.tier2_limit("float32", max(1.0, float(np.abs(want).max())), 1.0, 7)
            assert want.any() and np.all(np.abs(got - want) <= limit)


ALL = ("torch", "nnx", "linen")


def call(kind, config, *inputs, deterministic=True, **options):
    if kind == "torch":
        inputs = [torch.tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
        return maskattn_torch.MultiHeadAttention(config)(*inputs, deterministic=deterministic, **options)
    if kind == "nnx":
        module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(params=0))
        return module(*inputs, deterministic=deterministic, **options)
    module = linen.MultiHeadAttention(config=config)
    return module.init_with_output(jax.random.key(0), *inputs, deterministic=deterministic, **options)[0]


@pytest.mark.parametrize("kind", ALL)
def test_wrong_inputs_are_named(kind):
    config = CONFIGS["cross"]
    with pytest.raises(ValueError, match="value is given without key"):
        call(kind, config, X, None, VALUES)
    with pytest.raises(
        ValueError, match=r"(?s)query must be \[\.\.\., length, 12\].*key must be \[\.\.\., length, 10\]"
    ):
        call(kind, config, X[0, 0], X, VALUES)
    with pytest.raises(TypeError, match="key must be an array, got Causal; a mask is given by name: mask="):
        call(kind, config, X, masks.Causal())
    with pytest.raises(TypeError, match="query must be a.* got list"):
        call(kind, config, [[1.0]])
    with pytest.raises(
        TypeError, match="config must be an AttentionConfig, or embed_dim and num_heads, got embed_dim 12"
    ):
        call(kind, 12, X)
    with pytest.raises(ValueError, match="kernel must be one of auto, reference, exact, .*got 'fast'"):
        call(kind, CONFIGS["plain"], X, kernel="fast")
    with pytest.raises(ValueError, match="mask must broadcast"):
        call(kind, CONFIGS["plain"], X, mask=np.ones((6, 7), bool))


@pytest.mark.parametrize("kind", ALL)
def test_dropout_without_a_key_is_refused_where_it_is_on(kind):
    config = AttentionConfig(12, 3, dropout_rate=0.1, out_dropout_rate=0.2)
    says = "dropout_key must be given where dropout is on, got None and dropout_rate 0.1, out_dropout_rate 0.2"
    with pytest.raises(ValueError, match=says):
        call(kind, config, X, deterministic=False)
    with pytest.raises(ValueError, match=r"dropout_key must be a seed in \[0, 2\*\*31\) or two uint32 words, got -1"):
        call(kind, config, X, deterministic=False, dropout_key=-1)
    assert np.array_equal(call(kind, config, X).shape, call(kind, CONFIGS["plain"], X, deterministic=False).shape)


def test_deterministic_follows_each_ecosystem():
    config = AttentionConfig(12, 3, dropout_rate=0.1)
    module = maskattn_torch.MultiHeadAttention(config)
    with pytest.raises(ValueError, match="dropout_rate"):
        module(torch.tensor(X))
    module.eval()(torch.tensor(X))
    module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="dropout_rate"):
        module(X)
    module.eval()
    module(X)
    nnx.view(module, deterministic=True)(X)
    module = linen.MultiHeadAttention(config=config)
    with pytest.raises(ValueError, match="deterministic must be given"):
        module.init(jax.random.key(0), X)
    linen.MultiHeadAttention(config=config, deterministic=True).init(jax.random.key(0), X)
