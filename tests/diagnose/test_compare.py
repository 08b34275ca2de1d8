"""Whole comparisons: ports that are right, and ports that are not, outputs and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import maskattn
from maskattn_jax.tracing import record
from maskattn_jax.tracing.held import held
from tests.diagnose import programs as made

TOKENS = made.tokens()
MASK = np.ones(TOKENS.shape, int)
MASK[0, :3], MASK[1, 8:] = 0, 0
INPUTS = {"tokens": TOKENS, "attention_mask": MASK}


def port(dtype=jnp.float32, **changed):
    return functools.partial(made.port, made.params(dtype), **changed)


@functools.cache
def state():
    """What a comparison must leave as it is."""
    model = made.model()
    hooks = [hook for it in model.modules() for name, hook in vars(it).items() if name.endswith("hooks")]
    settings = (
        *(torch.get_default_dtype(), torch.is_grad_enabled(), jax.config.jax_enable_x64),
        *(jax.config.jax_default_matmul_precision, jax.config.jax_disable_jit),
    )
    bytes_of = {name: one.numpy().tobytes() for name, one in model.state_dict().items()}
    return settings, bytes_of, sum(map(len, hooks)), [one.grad for one in model.parameters()]


def test_a_right_port_is_equal_with_its_gradients():
    before = state()
    report = maskattn.compare(made.model(), port(), INPUTS, grads=True)
    state.cache_clear()
    assert state() == before
    assert report.ok and not report.places and len(report.gradients) == 19
    assert report.verdict.startswith("equal: outputs, and 19 gradients to ")
    assert report.notes == ()
    assert {pair.how for pair in report.parameters.pairs} == {"equal", "transposed", "part of"}


def test_settings_are_left_as_they_were_whatever_is_raised():
    def fails(tokens):
        raise RuntimeError("on purpose")

    state.cache_clear()
    before = state()
    for sides in ((fails, port()), (made.model(), fails)):
        with pytest.raises(RuntimeError, match="on purpose"):
            maskattn.compare(*sides, {"tokens": TOKENS})
    state.cache_clear()
    assert state() == before


def test_parameters_stored_in_bfloat16_are_said_and_are_no_fault():
    report = maskattn.compare(made.model(), port(jnp.bfloat16), INPUTS)
    assert report.ok, str(report)
    assert "parameters are stored rounded to bfloat16 on the JAX side" in str(report)


def test_padding_that_is_not_masked_is_found_where_it_counts():
    report = maskattn.compare(made.model(), port(faults=("no padding mask",)), INPUTS)
    assert not report.ok
    assert any("programs.py" in at for at in report.places[0].torch)
    unseen = maskattn.compare(made.model(), port(faults=("no padding mask",)), {"tokens": TOKENS})
    assert unseen.ok and "no padding" in unseen.notes[0]


def test_what_padded_tokens_hold_is_not_compared():
    def other(p, tokens, attention_mask):
        return made.port(p, tokens, attention_mask) * attention_mask[..., None]

    assert maskattn.compare(made.model(), functools.partial(other, made.params()), INPUTS).ok


@jax.custom_vjp
def half(x, wb):
    return made.linear(x, wb)


half.defvjp(lambda x, wb: (half(x, wb), (x, wb)), lambda held, g: jax.vjp(made.linear, *held)[1](g * 0.5))


def test_a_gradient_that_alone_is_wrong_is_found_at_its_place():
    report = maskattn.compare(made.model(), port(up=half), INPUTS, grads=True)
    assert report.error <= report.tolerance and not report.ok
    (place,) = report.places
    assert place.backward
    assert any("backward of layers.0" in at for at in place.torch)
    named = {one.torch for one in report.differing}
    assert {"layers.0.up.weight", "embed.weight"} <= named
    assert not named & {"layers.0.down.weight", "final.weight"}


def test_parameters_are_found_in_modules_and_functions_that_hold_them():
    from flax import nnx

    linear = nn.Linear(8, 16)
    theirs = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    theirs.kernel[...], theirs.bias[...] = linear.weight.detach().numpy().T, linear.bias.detach().numpy()
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    kept = {"w": theirs.kernel.get_value(), "b": theirs.bias.get_value()}
    linear.eval()
    plain = {name: np.asarray(one) for name, one in kept.items()}
    others = (theirs, lambda x: theirs(x), jax.jit(lambda x: x @ kept["w"] + kept["b"]))
    for ours in (linear, lambda x: linear(x)):
        for other in (*others, lambda x: jnp.dot(x, plain["w"]) + plain["b"]):
            report = maskattn.compare(ours, other, [x], grads=True)
            assert report.ok and len(report.gradients) == 2, str(report)


def test_a_function_that_belongs_to_no_module_holds_what_it_reads():
    namespace = {"w": jnp.ones(3)}  # without a __name__, as doctest and exec may have it
    exec("def program(x):\n    return x * w", namespace)
    assert namespace["program"].__module__ is None
    assert [name for name, _ in held(namespace["program"])[0]] == ["w"]


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="dtype: expected 'float64' or 'float32', got 'bfloat16'"):
        maskattn.compare(made.model(), port(), INPUTS, dtype="bfloat16")
    with pytest.raises(ValueError, match="torch_module: expected evaluation mode"):
        maskattn.compare(nn.Linear(2, 2).train(), port(), [np.zeros((2, 2))])


def test_modules_that_equinox_makes_anew_keep_their_paths():
    eqx = pytest.importorskip("equinox")

    class Rows(eqx.Module):
        layers: list
        out: eqx.nn.Linear

        def row(self, x):
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            return self.out(x)

        def __call__(self, x):
            return jax.vmap(self.row)(x)

    first, second, out = (eqx.nn.Linear(8, 8, key=jax.random.key(at)) for at in range(3))
    model, x = Rows([first, second], out), np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    paths = {"layers.0", "layers.1", "out"}
    for function, root in (
        (model, ""),
        (eqx.filter_jit(model), ""),
        (eqx.filter_vmap(lambda x: model.row(x)), "model."),
    ):
        trace = record(function, [x], {}, wide=True)
        assert {node.where.module for node in trace.nodes} >= {root + path for path in paths}
        assert not any("<" in node.where.module for node in trace.nodes)
        assert f"{root}layers.1.weight" in trace.parameters


def test_gradients_of_convolutions_and_of_complex_numbers():
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.LayerNorm(8), nn.Conv1d(6, 4, 1)

        def forward(self, x):
            y = self.conv(self.norm(x)).contiguous()
            turned = torch.view_as_complex(y.view(*y.shape[:-1], -1, 2)) * torch.polar(torch.ones(4), torch.arange(4.0))
            return torch.view_as_real(turned).flatten(-2)

    torch.manual_seed(0)
    model = Waves().eval()
    nn.init.normal_(model.norm.weight), nn.init.normal_(model.norm.bias)
    held = {name: jnp.asarray(one.numpy()) for name, one in model.state_dict().items()}

    def waves(p, x):
        y = made.norm(x, (p["norm.weight"], p["norm.bias"]))
        y = jnp.einsum("ocz,bcl->bol", p["conv.weight"], y) + p["conv.bias"][:, None]
        a, b, turn = y[..., ::2], y[..., 1::2], jnp.arange(4.0)
        real, imaginary = a * jnp.cos(turn) - b * jnp.sin(turn), a * jnp.sin(turn) + b * jnp.cos(turn)
        return jnp.stack((real, imaginary), -1).reshape(y.shape)

    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    report = maskattn.compare(model, functools.partial(waves, held), {"x": x}, grads=True)
    assert report.ok and len(report.gradients) == 4, str(report)
