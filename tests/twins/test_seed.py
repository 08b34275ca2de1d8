"""The seed module against its published definition, in every framework."""

import numpy as np
import pytest

from maskattn import standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, nnx, optional, torch

pytestmark = pytest.mark.hurried

linen = optional("maskattn_jax.linen")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 7, 12)).astype(np.float32)
KEEP = (np.arange(7) < np.array([[4], [0]])).astype(np.float32)  # the second row keeps nothing
MASKS = {
    "none": None,
    "padding": KEEP,
    "bool": KEEP.astype(bool),
    "int": KEEP.astype(np.int32),
    "fractional": RNG.random((2, 7)).astype(np.float32),
    "full": RNG.integers(0, 2, (2, 3, 7, 7)).astype(np.float32),
    "broadcast": RNG.random((1, 7, 7)).astype(np.float32),
}


def published(x, weights, mask, heads=3, scale=None, dtype=torch.float32):
    """The published forward: a fused projection, softmax of the masked logits, a projection; drop rates are 0."""
    x = torch.tensor(x).to(dtype)
    batch, length, dim = x.shape
    if weights:
        w = {name: torch.tensor(a).to(dtype) for name, a in weights.items()}
        qkv = torch.nn.functional.linear(x, w["qkv.weight"], w.get("qkv.bias"))
        q, k, v = qkv.reshape(batch, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    else:
        q = k = v = x.reshape(batch, length, heads, dim // heads).permute(0, 2, 1, 3)
    logits = (q @ k.transpose(-2, -1)) * (scale or (dim // heads) ** -0.5)
    if mask is not None:
        mask = torch.tensor(mask).to(dtype)
        logits = logits + (1.0 - (mask[:, None, None, :] if mask.ndim == 2 else mask)) * -10000.0
    out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, dim)
    return (torch.nn.functional.linear(out, w["proj.weight"], w["proj.bias"]) if weights else out).numpy()


def modules(weights, **options):
    """The three modules with these weights, as functions of (x, mask) in NumPy."""
    module = maskattn_torch.Attention(12, 3, **options)
    of_nnx = maskattn_jax.Attention(12, 3, **options, rngs=nnx.Rngs(0))
    of_linen = linen.Attention(12, 3, **options)
    module.load_state_dict({name: torch.tensor(x) for name, x in weights.items()}, strict=True)
    tree = {}
    if weights:
        canonical = layouts.get("timm").to_canonical(weights, module.config)
        for name, x in canonical.items():
            part, leaf = name.split(".")
            getattr(getattr(of_nnx, part), leaf).set_value(jnp.asarray(x))
            tree.setdefault(part, {})[leaf] = jnp.asarray(x)

    def run_torch(x, mask, **keywords):
        mask = None if mask is None else torch.tensor(mask)
        return module(torch.tensor(x), mask, **keywords).detach().numpy()

    return (
        run_torch,
        lambda x, mask, **keywords: np.asarray(of_nnx(x, mask, **keywords)),
        lambda x, mask, **keywords: np.asarray(of_linen.apply({"params": tree}, x, mask, **keywords)),
    )


def random_weights(qkv_bias):
    rng = np.random.default_rng(1)
    shapes = {"qkv.weight": (36, 12), "proj.weight": (12, 12), "proj.bias": (12,)}
    shapes |= {"qkv.bias": (36,)} if qkv_bias else {}
    return {name: rng.uniform(-0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", MASKS)
def test_the_published_definition(name):
    mask = MASKS[name]
    for qkv_bias, qk_scale in [(False, None), (True, 0.7)]:
        weights = random_weights(qkv_bias)
        # where a whole row is dropped, float32 rounds -10000 + logit: the published code is met, not the formula
        want = published(X, weights, mask, scale=qk_scale)
        config = AttentionConfig(12, 3, qkv_bias=qkv_bias, scale=qk_scale)
        bias = None
        if mask is not None:
            bias = (1.0 - mask.astype(np.float32)) * np.float32(-10000.0)
            bias = bias[:, None, None, :] if mask.ndim == 2 else bias
        limit = standards.value("module.peer") * standards.module_limit(
            X, layouts.get("timm").to_canonical(weights, config), None, "float32", bias=bias, scale=qk_scale
        )
        results = modules(weights, qkv_bias=qkv_bias, qk_scale=qk_scale)
        for run in results:
            assert np.all(np.abs(run(X, mask) - want) <= limit)
        if name in ("padding", "full") and qkv_bias:
            exact = [run(X, mask, kernel="exact") for run in results]
            assert exact[0].tobytes() == exact[1].tobytes() == exact[2].tobytes()


@pytest.mark.parametrize("name", ["none", "padding", "fractional"])
def test_without_projections_the_input_is_query_key_and_value(name):
    mask = MASKS[name]
    want = published(X, {}, mask)
    magnitude = float(np.abs(X).max())
    logit = 10000.0 if name != "none" else 10.0
    for run in modules({}, with_qkv=False):
        assert np.all(np.abs(run(X, mask) - want) <= standards.tier2_limit("float32", magnitude, logit, 7))
    assert not maskattn_torch.Attention(12, 3, with_qkv=False).state_dict()


def test_a_padded_token_changes_no_bit_of_the_others():
    changed = X.copy()
    changed[0, 4:] += 100.0
    for run in modules(random_weights(True), qkv_bias=True):
        assert np.array_equal(run(X, KEEP)[0, :4], run(changed, KEEP)[0, :4])


def test_names_and_defaults():
    module = maskattn_torch.Attention(16)
    assert {n: tuple(x.shape) for n, x in module.state_dict().items()} == {
        "qkv.weight": (48, 16),
        "proj.weight": (16, 16),
        "proj.bias": (16,),
    }
    assert module.config == AttentionConfig(16, 8, qkv_bias=False)
    state = nnx.to_pure_dict(nnx.state(maskattn_jax.Attention(16, rngs=nnx.Rngs(0))))
    variables = linen.Attention(16).init(jax.random.key(0), np.zeros((1, 2, 16), np.float32))
    shapes = {
        "query": {"kernel": (16, 8, 2)},
        "key": {"kernel": (16, 8, 2)},
        "value": {"kernel": (16, 8, 2)},
        "out": {"kernel": (8, 2, 16), "bias": (16,)},
    }
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, variables["params"]) == shapes


def build(kind, *arguments, **options):
    if kind == "torch":
        module = maskattn_torch.Attention(*arguments, **options)
        return lambda *inputs, **keywords: module(
            *(torch.tensor(x) if isinstance(x, np.ndarray) else x for x in inputs), **keywords
        )
    if kind == "nnx":
        return maskattn_jax.Attention(*arguments, **options, rngs=nnx.Rngs(params=0))
    module = linen.Attention(*arguments, **options)
    return lambda *inputs, **keywords: module.init_with_output(jax.random.key(0), *inputs, **keywords)[0]


@pytest.mark.parametrize("kind", ["torch", "nnx", "linen"])
def test_wrong_arguments_are_named(kind):
    module = build(kind, 12, 3)
    for mask in (KEEP[:, :6], np.ones((3, 7)), np.ones((2, 7, 7)), np.ones((2, 2, 7, 7)), np.ones((1, 2, 3, 7, 7))):
        with pytest.raises(ValueError, match=r"attention_mask must be \[B, N\] = \(2, 7\) or broadcast to"):
            module(X, mask.astype(np.float32))
    with pytest.raises(TypeError, match="attention_mask must be a .*, got list"):
        module(X, [[1.0]])
    with pytest.raises(ValueError, match=r"x must be \[batch, length, dim\], got shape \(7, 12\)"):
        module(X[0], KEEP)
    with pytest.raises(ValueError, match="embed_dim 10 is not divisible by num_heads 3"):
        build(kind, 10, 3)(X)
    trained = build(kind, 12, 3, attn_drop=0.1, proj_drop=0.3)
    with pytest.raises(ValueError, match="dropout_key must be given .*dropout_rate 0.1, out_dropout_rate 0.3"):
        trained(X, deterministic=False)
    assert trained(X, deterministic=True).shape == X.shape
