"""Derivatives of every order and in both modes, in both twins: right in float64, or refused by name."""

import numpy as np
import pytest

from maskattn import biases, masks, standards
from tests.frameworks import jax, maskattn_torch, torch
from tests.twin import load

# PyTorch's forward mode makes scripts of its decompositions when it is first used, and then warns of it.
pytestmark = [pytest.mark.hurried, pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")]

L, S = 5, 6
LIMIT = standards.value("same.second") * standards.eps("float64")


def inputs(twin, q_len=L, kv_len=S):
    rng = np.random.default_rng(0)
    shapes = ((2, q_len, 2, 3), (2, kv_len, 1, 3), (2, kv_len, 1, 3))
    return [[twin.array(rng.standard_normal(shape)) for shape in shapes] for _ in range(2)]


KEEP = np.random.default_rng(1).random((2, 1, L, S)) < 0.6
KEEP[0, :, 1] = False  # an empty row
TABLE = np.random.default_rng(2).standard_normal((8, 2))
KERNELS = ("blockwise", "reference")
#: All options in two calls: JAX compiles each in every kernel.
OPTIONS = {
    "mask, table, sinks": lambda twin: {
        "mask": masks.SlidingWindow(3) & masks.KeyPadding(twin.array(np.array([S, S - 2]))),
        "bias": biases.T5Buckets(twin.array(TABLE)),
        "sinks": twin.array(np.array([0.5, -0.5])),
    },
    "empty row, softcap, dropout": lambda twin: {
        "mask": twin.array(KEEP),
        "softcap": 2.0,
        "dropout_rate": 0.3,
        "dropout_key": 5,
    },
}


def loss(twin, kernel, options):
    if kernel != "auto":
        options = options | {"return_lse": True}

    def f(*arrays):
        found = twin.attention(*arrays, kernel=kernel, **options)
        output, lse = found if isinstance(found, tuple) else (found, 0 * found)
        finite = twin.numpy.where(twin.numpy.isfinite(lse), lse, 0) if kernel != "auto" else lse
        return (output**2).sum() + (finite**2).sum()

    return f


def jvp(twin, f, arrays, tangents):
    module = twin.framework if twin.name == "jax" else twin.framework.func
    return module.jvp(f, tuple(arrays), tuple(tangents))[1]


def hvp(twin, f, arrays, tangents):
    module = twin.framework if twin.name == "jax" else twin.framework.func
    return jvp(twin, module.grad(f, (0, 1, 2)), arrays, tangents)


def twice(twin, f, arrays, tangents):
    module = twin.framework if twin.name == "jax" else twin.framework.func

    def along(*arrays):
        return sum((x * t).sum() for x, t in zip(module.grad(f, (0, 1, 2))(*arrays), tangents, strict=True))

    return module.grad(along, (0, 1, 2))(*arrays)


def every(twin, f, arrays, tangents):
    """What all three ways give; in JAX under one jit."""

    def run(*arrays):
        return [way(twin, f, arrays, tangents) for way in (jvp, hvp, twice)]

    found = (jax.jit(run) if twin.name == "jax" else run)(*arrays)
    return [x for each in found for x in numbers(twin, each)]


def numbers(twin, found):
    found = found if isinstance(found, (tuple, list)) else [found]
    return [np.asarray(twin.to_numpy(x)) for x in found]


def agree(found, expected, limit=LIMIT):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=limit, atol=limit * max(1.0, np.abs(other).max()))


def options_but(name):
    """Both `OPTIONS`; this one is left to slow tests in JAX, where the other test has it."""
    return [pytest.param(x, marks=[pytest.mark.slow_in("jax")] * (x == name)) for x in OPTIONS]


@pytest.mark.parametrize("name", options_but("mask, table, sinks"))
def test_the_reference_kernel_against_differences(twin, name):
    """Forward mode is the difference of values, and a Hessian-vector product that of gradients."""
    with twin.x64():
        arrays, tangents = inputs(twin)
        f = loss(twin, "reference", OPTIONS[name](twin))
        run = jax.jit(f) if twin.name == "jax" else f
        step, values, gradients = 1e-5, [], []
        for sign in (1, -1):
            moved = [x + sign * step * t for x, t in zip(arrays, tangents, strict=True)]
            values.append(float(run(*moved)))
            gradients.append(twin.grad(run, *moved))
        expected = [np.array((values[0] - values[1]) / (2 * step))]
        expected += [(x - y) / (2 * step) for x, y in zip(*gradients, strict=True)]
        found = every(twin, f, arrays, tangents)
        agree(found[: len(expected)], expected, standards.eps("float32") * 64)  # of differences
        agree(found[len(expected) :], found[1 : len(expected)])  # the Hessian is symmetric


@pytest.mark.parametrize("name", options_but("empty row, softcap, dropout"))
def test_blockwise_has_those_of_the_formula(twin, name):
    with twin.x64():
        options = OPTIONS[name](twin)
        found, expected = (every(twin, loss(twin, kernel, options), *inputs(twin)) for kernel in KERNELS)
        agree(found, expected)


def test_blockwise_has_them_in_several_tiles(twin):
    with twin.x64():
        options = {"mask": masks.Causal()}
        found = every(twin, loss(twin, "blockwise", options | {"blocks": (2, 2)}), *inputs(twin))
        agree(found, every(twin, loss(twin, "reference", options), *inputs(twin)))


def test_some_queries_at_a_time(twin, monkeypatch):
    """Where a length is above the switch: here all of them are, two queries at a time, the last time one."""
    with twin.x64():
        bias = twin.array(np.random.default_rng(3).standard_normal((1, 2, L, S)))
        options = {"mask": twin.array(KEEP), "bias": bias, "dropout_rate": 0.3, "dropout_key": 5}
        f = loss(twin, "reference", options)
        expected = every(twin, f, *inputs(twin))
        monkeypatch.setattr(twin.kernels.reference, "rows_at_once", lambda call: 2)
        agree(every(twin, loss(twin, "reference", options), *inputs(twin)), expected)


@pytest.mark.parametrize("way", [jvp, hvp, twice])
def test_exact_refuses_by_name(twin, way):
    arrays, tangents = inputs(twin, 2, 2)
    f = loss(twin, "exact", {})
    with pytest.raises(NotImplementedError, match=r'kernel="exact" has no .*; kernel="reference" has'):
        way(twin, f, arrays, tangents)


@pytest.mark.torch
@pytest.mark.parametrize(
    "mask",
    [None, masks.Causal(), pytest.param(masks.SlidingWindow(3), marks=pytest.mark.slow)],
    ids=["none", "causal", "window"],
)
def test_sdpa_in_torch_is_differentiated_twice(mask):
    x = torch.sin(torch.arange(60.0, dtype=torch.float64)).reshape(1, 5, 2, 6)

    def f(kernel):
        return lambda x: maskattn_torch.attention(x, x.cos(), x.exp(), mask, kernel=kernel).pow(3).sum()

    hessian, wanted = (torch.autograd.functional.hessian(f(kernel), x) for kernel in ("fused", "reference"))
    agree([hessian.numpy()], [wanted.numpy()])
    found, wanted = (torch.func.jacfwd(torch.func.jacfwd(f(kernel)))(x) for kernel in ("auto", "reference"))
    agree([found.numpy()], [wanted.numpy()])
    agree([found.numpy()], [hessian.numpy()])
    with pytest.raises(NotImplementedError, match='kernel="fused" has no forward mode here; kernel="reference" has'):
        torch.func.jvp(f("fused"), (x,), (x,))


@pytest.mark.jax
@pytest.mark.parametrize("kernel", KERNELS)
def test_linearize_and_vmap_in_jax(kernel):
    twin = load("jax")
    with twin.x64():
        arrays, tangents = inputs(twin)
        f = loss(twin, kernel, {"mask": masks.Causal()})

        @jax.jit
        def run(*arrays):
            mapped = jax.vmap(lambda *x: jvp(twin, f, x, tangents))(*(x[None] for x in arrays))
            return jvp(twin, f, arrays, tangents), jax.linearize(f, *arrays)[1](*tangents), mapped[0]

        expected, *found = numbers(twin, run(*arrays))
        agree(found, [expected] * 2)
