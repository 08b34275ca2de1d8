"""The rules of the exact arithmetic in both twins: NumPy's bits, forward and backward, under every transformation."""

import numpy as np
import pytest

from maskattn.numerics import exact
from tests.frameworks import jax, jax_exact, jnp, torch, torch_exact
from tests.numerics.exact.layer_cases import CASES, KINDS, normal
from tests.twin import same, to_torch

#: Of how many arrays each function has gradients: all, but for positions and frequencies.
COUNT = {"embed": 1, "rotate": 1, "rotate-part": 1, "rotate-axes": 1, "temperature": 1}
#: The dtype in which each is run by JAX, where every program is compiled: all in turn.
IN_TURN = {name: list(KINDS)[n % 4] for n, name in enumerate(CASES)}


def _slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


def _problem(name, kind):
    """The arrays, those with gradients first; a cotangent; and the result and the gradients in NumPy."""
    case = CASES[name]
    arrays = case.arrays(normal(5), KINDS[kind])
    out = case.call(exact.LAYER, *arrays)
    d_out = normal(6)(out.shape).astype(KINDS[kind])
    return arrays, d_out, out, [x for x in case.call(exact.gradients(d_out), *arrays) if x is not None]


def _function(name, layer, arrays):
    """The function of the arrays with gradients."""
    count = COUNT.get(name, len(arrays))
    return lambda *moved: CASES[name].call(layer, *moved, *arrays[count:]), arrays[:count]


def _in_torch(name, arrays):
    return _function(name, torch_exact.rules.EXACT, [to_torch(x) for x in arrays])


def _in_jax(name, arrays):
    return _function(name, jax_exact.rules.EXACT, [jnp.asarray(x) for x in arrays])


def _all_same(expected, got):
    assert len(expected) == len(got)
    for x, y in zip(expected, got, strict=True):
        same(y, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_numpys_bits_in_torch(name, kind):
    arrays, d_out, out, gradients = _problem(name, kind)
    function, moved = _in_torch(name, arrays)
    same(function(*moved), out)
    leaves = [x.requires_grad_() for x in moved]
    result = function(*leaves)
    same(result, out)
    _all_same(gradients, torch.autograd.grad(result, leaves, to_torch(d_out)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(name, kind, marks=[pytest.mark.slow] * (kind != IN_TURN[name])) for name in CASES for kind in KINDS],
)
def test_numpys_bits_in_jax(name, kind):
    arrays, d_out, out, gradients = _problem(name, kind)
    with jax.enable_x64(kind == "float64"):
        function, moved = _in_jax(name, arrays)

        @jax.jit
        def both(moved, d_out):
            result, pull = jax.vjp(function, *moved)
            return result, pull(d_out)

        result, got = both(moved, jnp.asarray(d_out))
        same(result, out)
        _all_same(gradients, got)


# Each operation of each shape is compiled by itself: some ten seconds.
@pytest.mark.parametrize("name", ["sigmoid", *_slow(*(CASES.keys() - {"sigmoid"}))])
def test_numpys_bits_in_jax_without_jit(name):
    arrays, d_out, out, gradients = _problem(name, "float32")
    function, moved = _in_jax(name, arrays)
    with jax.disable_jit():
        result, pull = jax.vjp(function, *moved)
        same(result, out)
        _all_same(gradients, pull(jnp.asarray(d_out)))


# PyTorch's forward mode imports torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_torchs_transformations(name):
    arrays, d_out, out, gradients = _problem(name, "float32")
    function, moved = _in_torch(name, arrays)
    places = tuple(range(len(moved)))

    def loss(*moved):
        return (function(*moved) * to_torch(d_out)).sum()

    alone = torch.func.grad(loss, argnums=places)
    _all_same(gradients, alone(*moved))
    stacked = [torch.stack([x, x.flip(0)]) for x in moved]
    mapped = torch.vmap(alone)(*stacked)
    _all_same(gradients, [x[0] for x in mapped])
    _all_same(alone(*(x.flip(0) for x in moved)), [x[1] for x in mapped])
    same(torch.vmap(function)(*stacked)[0], out)
    with pytest.raises(NotImplementedError, match=r'"exact" has no second .* kernel="reference" has'):
        torch.func.grad(lambda x: (alone(x, *moved[1:])[0] * x).sum())(moved[0])
    with pytest.raises(NotImplementedError, match='no forward mode; kernel="reference" has'):
        torch.func.jvp(function, tuple(moved), tuple(moved))


@pytest.mark.parametrize("name", ["products", *_slow("layer", "rotate-axes")])
def test_jaxs_transformations(name):
    arrays, d_out, out, gradients = _problem(name, "float32")
    function, moved = _in_jax(name, arrays)

    def both(*moved):
        result, pull = jax.vjp(function, *moved)
        return result, pull(jnp.asarray(d_out))

    mapped, got = jax.vmap(both)(*(jnp.stack([x, jnp.flip(x, 0)]) for x in moved))
    same(mapped[0], out)
    _all_same(gradients, [x[0] for x in got])
    with pytest.raises(NotImplementedError, match='no second derivatives; kernel="reference" has'):
        jax.grad(lambda x: both(x, *moved[1:])[1][0].sum())(moved[0])
    with pytest.raises(NotImplementedError, match='no forward mode; kernel="reference" has'):
        jax.jvp(function, tuple(moved), tuple(moved))


# Dynamo itself instantiates the autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_inside_a_compiled_model():
    names = ["layer", "rotate", "temperature", "cosine", "gate"]
    problems = {name: _problem(name, "float32") for name in names}
    functions = {name: _in_torch(name, problems[name][0]) for name in names}
    for _, moved in functions.values():
        for x in moved:
            x.requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def everything(given):
        return [functions[name][0](*given[name]) for name in names]

    results = everything({name: moved for name, (_, moved) in functions.items()})
    _all_same([problems[name][2] for name in names], results)
    leaves = [x for name in names for x in functions[name][1]]
    d_outs = [to_torch(problems[name][1]) for name in names]
    expected = [x for name in names for x in problems[name][3]]
    _all_same(expected, torch.autograd.grad(results, leaves, d_outs))


def test_the_operators_keep_torchs_rules():
    x, scale, positions = torch.randn(1, 2, 2, 4), torch.randn(4), torch.arange(2)[None]
    given = {
        "norm": ((x, scale, None), ("rms", 1e-5, "head", False)),
        "rotate": ((x, positions, torch.ones(1)), ("half", 1.0)),
        "products": ((x, torch.randn(3, 2, 4)), (2, 0.5)),
    }
    for name, (arrays, options) in given.items():
        function, gradients = (one.operator for one in torch_exact.rules.OPERATORS[name])
        torch.library.opcheck(function, (*arrays, *options))
        torch.library.opcheck(gradients, (*arrays, function(*arrays, *options), *options))


def test_products_are_counted():
    x, y = torch.randn(2, 3, 4, 5), torch.randn(7, 2, 5, requires_grad=True)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch_exact.rules.EXACT.products(x, y, 4, 1.0).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 4 * 3 * 7 * 5)


def test_growth():
    plain, length = (1e4 ** (-np.arange(8) / 8)).astype(np.float32), np.array([1000], np.int32)
    expected = exact.LAYER.growth(plain, length, by=4.0, trained=64)
    same(torch_exact.rules.EXACT.growth(to_torch(plain), to_torch(length), by=4.0, trained=64), expected)
    grown = jax.jit(lambda n: jax_exact.rules.EXACT.growth(jnp.asarray(plain), n, by=4.0, trained=64))
    same(grown(jnp.asarray(length)), expected)
