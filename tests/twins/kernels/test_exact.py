"""kernel="exact" in both twins: NumPy's bits, forward and backward, under every transformation that is promised."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import AttentionConfig, biases, masks
from maskattn.numerics import exact, rng
from tests.frameworks import CAN_LINK, jax, jax_exact, jnp, maskattn_jax, maskattn_torch, torch, torch_exact
from tests.twin import same, to_torch

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
B, L, S, H, K, D, DV = 2, 5, 7, 4, 2, 3, 5


def _same(expected, got):
    for x, y in zip(expected, got, strict=True):
        same(y, x)


def _problem(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    q, k, v, d = (
        rng.standard_normal(s).astype(kind) for s in [(B, L, H, D), (B, S, K, D), (B, S, K, DV), (B, L, H, DV)]
    )
    d_lse = rng.standard_normal((B, L, H)).astype(np.float64 if dtype == "float64" else np.float32)
    bias, sinks = rng.standard_normal((1, H, 1, S)).astype(kind), rng.standard_normal(H).astype(kind)
    mask = masks.Causal(1) & masks.KeyPadding(np.array([7, 0], np.int32))
    return (q, k, v, bias, sinks), (d, d_lse), mask


def _dropped(key=5):
    return {"dropout_rate": 0.3, "dropout_key": key, "dropout_broadcast": ("batch",)}


def _expected(arrays, cotangents, mask, **options):
    q, k, v, bias, sinks = arrays
    allowed = mask.dense(q.shape[1], k.shape[1], batch=q.shape[0])
    forward = exact.attention(q, k, v, allowed, bias=bias, sinks=sinks, **options)
    return forward, exact.attention_backward(q, k, v, allowed, *cotangents, bias=bias, sinks=sinks, **options)


def _jax_attention(mask, **options):
    def f(q, k, v, bias, sinks):
        return maskattn_jax.attention(q, k, v, mask, bias=bias, sinks=sinks, kernel="exact", return_lse=True, **options)

    return f


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpys_bits_in_torch(dtype):
    arrays, cotangents, mask = _problem(dtype)
    forward, grads = _expected(arrays, cotangents, mask, softcap=3.0)
    tensors = [to_torch(x).requires_grad_() for x in arrays]
    q, k, v, bias, sinks = tensors
    options = {"bias": bias, "sinks": sinks, "softcap": 3.0, "kernel": "exact", "return_lse": True}
    out = maskattn_torch.attention(q, k, v, mask, **options)
    _same(forward, out)
    _same(grads, torch.autograd.grad(out, tensors, [to_torch(x) for x in cotangents]))


# The parity suite has every dtype, forward and backward in one program and without jit; here each is its own.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpys_bits_in_jax(dtype):
    arrays, cotangents, mask = _problem(dtype)
    dropout = _dropped() if dtype == "bfloat16" else {}
    forward, grads = _expected(arrays, cotangents, mask, softcap=3.0, **dropout)
    with jax.enable_x64(dtype == "float64"):
        jitted = jax.jit(_jax_attention(mask, softcap=3.0, **dropout))
        out, vjp = jax.vjp(jitted, *map(jnp.asarray, arrays))
        _same(forward, out)
        _same(grads, vjp(tuple(map(jnp.asarray, cotangents))))


def test_vmap_gives_the_bits_of_a_loop():
    problems = [_problem(seed=s) for s in (2, 3)]
    mask = problems[0][2]
    expected = [_expected(a, c, mask) for a, c, _ in problems]
    forward = [np.stack(x) for x in zip(*(f for f, _ in expected), strict=True)]
    grads = [np.stack(x) for x in zip(*(g for _, g in expected), strict=True)]
    stacked = [np.stack(x) for x in zip(*(a for a, _, _ in problems), strict=True)]
    cotangents = [np.stack(x) for x in zip(*(c for _, c, _ in problems), strict=True)]

    def jax_both(arrays, cotangents):
        out, vjp = jax.vjp(_jax_attention(mask), *arrays)
        return out, vjp(cotangents)

    out, got = jax.vmap(jax_both)(list(map(jnp.asarray, stacked)), tuple(map(jnp.asarray, cotangents)))
    _same(forward, out)
    _same(grads, got)

    def torch_both(arrays, cotangents):
        def f(q, k, v, bias, sinks):
            return maskattn_torch.attention(q, k, v, mask, bias=bias, sinks=sinks, kernel="exact", return_lse=True)

        out, vjp = torch.func.vjp(f, *arrays)
        return out, vjp(cotangents)

    out, got = torch.func.vmap(torch_both)(list(map(to_torch, stacked)), tuple(map(to_torch, cotangents)))
    _same(forward, out)
    _same(grads, got)


def test_vmap_over_the_data_of_a_mask():
    (q, k, v, _, _), _, _ = _problem(seed=4)
    lengths = np.array([[7, 3], [1, 5]], np.int32)
    expected = np.stack([exact.attention(q, k, v, masks.KeyPadding(n).dense(L, S))[0] for n in lengths])

    def f(n):
        return maskattn_jax.attention(*map(jnp.asarray, (q, k, v)), masks.KeyPadding(n), kernel="exact")

    def g(n):
        return maskattn_torch.attention(*map(to_torch, (q, k, v)), masks.KeyPadding(n), kernel="exact")

    _same([expected], [jax.vmap(f)(jnp.asarray(lengths))])
    _same([expected], [torch.func.vmap(g)(to_torch(lengths))])


def test_vmap_over_keys():
    (q, k, v, _, _), _, mask = _problem(seed=10)
    keys, allowed = rng.split(rng.key(3)), mask.dense(L, S, batch=B)
    expected = np.stack([exact.attention(q, k, v, allowed, **_dropped(key))[0] for key in keys])

    def f(key):
        return maskattn_jax.attention(*map(jnp.asarray, (q, k, v)), mask, kernel="exact", **_dropped(key))

    def g(key):
        return maskattn_torch.attention(*map(to_torch, (q, k, v)), mask, kernel="exact", **_dropped(key))

    _same([expected], [jax.vmap(f)(jnp.asarray(keys))])
    _same([expected], [torch.func.vmap(g)(torch.from_numpy(keys))])


def test_inside_a_scan_and_a_remat():
    arrays, cotangents, mask = _problem(seed=5)
    forward, grads = _expected(arrays, cotangents, mask)

    def f(*arrays):
        step = jax.checkpoint(lambda _, x: (None, _jax_attention(mask)(*x)))
        _, out = jax.lax.scan(step, None, jax.tree.map(lambda x: x[None], arrays))
        return jax.tree.map(lambda x: x[0], out)

    out, vjp = jax.vjp(f, *map(jnp.asarray, arrays))
    _same(forward, out)
    _same(grads, vjp(tuple(map(jnp.asarray, cotangents))))


# Dynamo itself instantiates the autograd.Function that it traces, and inductor imports torch.jit.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=CAN_LINK)])
def test_inside_a_compiled_model(backend):
    arrays, cotangents, mask = _problem(seed=6)
    dropout = _dropped()
    forward, grads = _expected(arrays, cotangents, mask, **dropout)

    @torch.compile(fullgraph=True, backend=backend)
    def f(q, k, v, bias, sinks):
        options = {"bias": bias, "sinks": sinks, "kernel": "exact", "return_lse": True}
        return maskattn_torch.attention(q, k, v, mask, **options, **dropout)

    tensors = [to_torch(x).requires_grad_() for x in arrays]
    out = f(*tensors)
    _same(forward, out)
    _same(grads, torch.autograd.grad(out, tensors, [to_torch(x) for x in cotangents]))
    _same(forward, f(*map(to_torch, arrays)))


def test_the_operators_keep_torchs_rules():
    arrays, _, mask = _problem(seed=7)
    allowed = to_torch(mask.dense(L, S, batch=B))
    q, k, v, bias, sinks = map(to_torch, arrays)
    torch.library.opcheck(
        torch_exact._attention.operator, (q, k, v, allowed, bias, sinks, None, 0.5, None, "zero", 1.0)
    )
    torch.library.opcheck(torch_exact._attention.operator, (q, k, v, None, None, None, ~allowed, 0.5, 2.0, "mean", 0.7))
    torch.library.opcheck(
        torch_exact.rules.OPERATORS["linear"][0].operator, (torch.randn(4, 3), torch.randn(3, 2), None)
    )


def test_gradcheck():
    torch.manual_seed(0)
    shapes = [(1, 3, 4, 2), (1, 4, 2, 2), (1, 4, 2, 3), (1, 4, 1, 4), (4,)]
    q, k, v, bias, sinks = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)

    def f(q, k, v, bias, sinks):
        mask = masks.Causal(1)
        options = {"bias": bias, "sinks": sinks, "softcap": 2.0, "kernel": "exact", "return_lse": True}
        return maskattn_torch.attention(q, k, v, mask, **options)

    assert torch.autograd.gradcheck(f, (q, k, v, bias, sinks))


def test_second_derivatives_are_refused_not_wrong():
    q = np.ones((1, 2, 1, 2), np.float32)

    def f(x):
        return maskattn_jax.attention(x, q, q, kernel="exact").sum()

    with pytest.raises(NotImplementedError, match="reference"):
        jax.grad(lambda x: jax.grad(f)(x).sum())(jnp.asarray(q))
    x = to_torch(q).requires_grad_()
    (g,) = torch.autograd.grad(maskattn_torch.attention(x, x, x, kernel="exact").sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        g.sum().backward()


FUNCTIONS = {
    "attention": lambda q, k, v, w: maskattn_torch.attention(q, k, v, kernel="exact"),
    "options": lambda q, k, v, w: maskattn_torch.attention(
        q, k, v, masks.Causal() & masks.KeyPadding([4]), bias=w, softcap=2.0, sinks=w[:2, 0], kernel="exact"
    ),
    "log-sum-exp": lambda q, k, v, w: maskattn_torch.attention(q, k, v, kernel="exact", return_lse=True)[1],
    "dropout": lambda q, k, v, w: maskattn_torch.attention(q, k, v, kernel="exact", dropout_rate=0.3, dropout_key=5),
    "table": lambda q, k, v, w: maskattn_torch.attention(
        q, k, v, bias=biases.T5Buckets(w.reshape(8, 2)), kernel="exact"
    ),
    "linear": lambda q, k, v, w: torch_exact.linear(q.flatten(2) + k.flatten(2), w, v[0, 0, 0, :1].expand(4)),
    "drop": lambda q, k, v, w: torch_exact.drop(q * w.sum() + k + v, torch.arange(16).reshape(1, 4, 2, 2) % 3 > 0, 0.3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_func_grad(name):
    arrays = [torch.sin(n * torch.arange(16.0)).reshape(1, 4, 2, 2) for n in (1, 2, 3)]
    arrays.append(torch.cos(torch.arange(16.0)).reshape(4, 4))

    def loss(*arrays):
        return FUNCTIONS[name](*arrays).sin().sum()

    leaves = [x.clone().requires_grad_() for x in arrays]
    expected = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True, materialize_grads=True)
    alone = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    _same(expected, alone(*arrays))
    _same(expected, torch.func.jacrev(loss, argnums=(0, 1, 2, 3))(*arrays))
    mapped = torch.vmap(alone)(*(torch.stack([x, x.flip(0, 1)]) for x in arrays))
    _same(expected, [x[0] for x in mapped])
    _same(alone(*(x.flip(0, 1) for x in arrays)), [x[1] for x in mapped])
    with pytest.raises(NotImplementedError, match=r'"exact" has no second .* kernel="reference" has'):
        torch.func.grad(lambda q: (alone(q, *arrays[1:])[0] * arrays[1]).sum())(arrays[0])
    with pytest.raises(NotImplementedError, match='kernel="reference"'):
        torch.autograd.functional.hessian(lambda q: q.pow(3).sum() + loss(q, *arrays[1:]), arrays[0])


def test_torch_func_grad_of_a_module():
    module = maskattn_torch.MultiHeadAttention(AttentionConfig(embed_dim=8, num_heads=2))
    weights, x = dict(module.named_parameters()), torch.sin(torch.arange(24.0)).reshape(1, 3, 8)

    def loss(weights):
        return torch.func.functional_call(module, weights, (x,), {"kernel": "exact"}).sin().sum()

    expected = torch.autograd.grad(loss(weights), list(weights.values()))
    _same(expected, torch.func.grad(loss)({name: w.detach() for name, w in weights.items()}).values())


def test_additive_bias_is_added_not_masked():
    (q, k, v, _, _), _, _ = _problem(seed=8)
    padding = masks.KeyPadding(np.array([7, 4], np.int32))
    bias = np.where(padding.dense(L, S), np.float32(0), np.float32(-10000))
    expected = exact.attention(q, k, v, bias=bias)[0]
    for maskattn, to in [(maskattn_jax, jnp.asarray), (maskattn_torch, to_torch)]:
        _same([expected], [maskattn.attention(*map(to, (q, k, v)), bias=biases.Additive(padding), kernel="exact")])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype):
    rng = np.random.default_rng(9)
    x, w, b, d = (rng.standard_normal(s).astype(DTYPES[dtype]) for s in [(2, 5, 11), (11, 7), (7,), (2, 5, 7)])
    forward, grads = exact.linear(x, w, b), exact.linear_backward(x, w, d)
    tensors = [to_torch(a).requires_grad_() for a in (x, w, b)]
    out = torch_exact.linear(*tensors)
    _same([forward], [out])
    _same(grads, torch.autograd.grad(out, tensors, to_torch(d)))
    with jax.enable_x64(dtype == "float64"):
        out, vjp = jax.vjp(jax_exact.linear, *map(jnp.asarray, (x, w, b)))
        _same([forward], [out])
        _same(grads, vjp(jnp.asarray(d)))
