"""A run that moves to the other framework half way, moments and step count included, is the run that stayed."""

from dataclasses import replace

import numpy as np
import pytest

from maskattn import optimizers, standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.frameworks import jax, jnp, maskattn_jax, maskattn_torch, nnx, optax, torch

pytestmark = pytest.mark.hurried

CONFIG = AttentionConfig(10, 6, num_kv_heads=2, head_dim=5, v_head_dim=3, out_dim=7)
DRAW = np.random.default_rng(0)
X, Y = DRAW.standard_normal((2, 4, 10)), DRAW.standard_normal((2, 4, 7))
START = {name: DRAW.standard_normal(shape) / 3 for name, shape in layouts.get("canonical").shapes(CONFIG).items()}

# As PyTorch makes it, and as optax does. Learning rates at which ten steps move every parameter far.
OPTIMIZERS = {
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.03, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1),
        lambda: optax.adamw(0.03, b1=0.8, b2=0.95, eps=1e-5, weight_decay=0.1),
    ),
    "adam, decay in the gradient": (
        lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.9, 0.999), weight_decay=0.2),
        lambda: optax.chain(optax.add_decayed_weights(0.2), optax.adam(0.03)),
    ),
    "sgd with nesterov momentum": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
}


def torch_run(make, weights, steps, moments=None):
    module = maskattn_torch.MultiHeadAttention(CONFIG, dtype=torch.float64)
    maskattn_torch.params.load(module, weights)
    optimizer = make(list(module.named_parameters()))
    if moments is not None:
        maskattn_torch.optimizers.load(optimizer, moments)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((module(torch.from_numpy(X), kernel="reference") - torch.from_numpy(Y)) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return maskattn_torch.params.dump(module), maskattn_torch.optimizers.dump(optimizer), losses


def jax_run(make, weights, steps, moments=None):
    module = maskattn_jax.MultiHeadAttention(CONFIG, param_dtype=jnp.float64, dtype=jnp.float64, rngs=nnx.Rngs(0))
    maskattn_jax.params.load(module, weights)
    optimizer = nnx.Optimizer(module, make(), wrt=nnx.Param)
    if moments is not None:
        maskattn_jax.optimizers.load(optimizer, moments)

    @nnx.jit
    def step(module, optimizer):
        loss, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(X, kernel="reference") - Y) ** 2))(module)
        optimizer.update(module, gradient)
        return loss

    losses = [float(step(module, optimizer)) for _ in range(steps)]
    return maskattn_jax.params.dump(module), maskattn_jax.optimizers.dump(optimizer), losses


def judge(moved, stayed):
    """The largest relative difference. Key biases have no gradient in exact arithmetic: Adam makes steps of noise."""
    (weights, moments, losses), (others, other_moments, other_losses) = moved, stayed
    worst = max(abs(a - b) / b for a, b in zip(losses, other_losses[-len(losses) :], strict=True))
    states = [
        optimizers.convert(m, source="maskattn-torch", target="canonical", config=CONFIG)
        for m in (moments, other_moments)
    ]
    pairs = [(weights, others)] + [(states[0].slots[slot], states[1].slots[slot]) for slot in moments.slots]
    for name in set(weights) - {"key.bias"}:
        worst = max([worst, *(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for a, b in pairs)])
    return worst


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_in_one_framework_and_half_in_the_other(name):
    in_torch, in_jax = OPTIMIZERS[name]
    limit = standards.value("tier3.float64")
    with jax.enable_x64(True):
        first_half = torch_run(in_torch, START, 5)
        assert np.abs(first_half[0]["query.kernel"] - START["query.kernel"]).max() > 0.01
        there = optimizers.convert(first_half[1], source="maskattn-torch", target="flax-nnx", config=CONFIG)
        crossed = jax_run(in_jax, first_half[0], 5, there)
        back = optimizers.convert(crossed[1], source="flax-nnx", target="maskattn-torch", config=CONFIG)
        home = torch_run(in_torch, crossed[0], 5, back)
        whole = torch_run(in_torch, START, 15)
    assert home[1].step == whole[1].step == (None if name.startswith("sgd") else 15)
    assert judge(home, whole) <= limit
    joined = (*home[:2], first_half[2] + crossed[2] + home[2])
    assert judge(joined, whole) <= limit


@pytest.mark.parametrize("fault", ["nothing carried", "a step less", "moments exchanged", "heads in another order"])
def test_a_run_that_lost_something_on_the_way_is_seen(fault):
    """What a wrong conversion would do, PyTorch to PyTorch: the limit is far below it."""
    make = OPTIMIZERS["adamw"][0]
    half, whole = torch_run(make, START, 5), torch_run(make, START, 10)
    moments = half[1]
    if fault == "a step less":
        moments = replace(moments, step=4)
    elif fault == "moments exchanged":
        moments = replace(moments, slots={"mu": moments.slots["nu"], "nu": moments.slots["mu"]})
        moments = replace(
            moments, slots={slot: {n: abs(a) for n, a in held.items()} for slot, held in moments.slots.items()}
        )
    elif fault == "heads in another order":
        moved = optimizers.convert(moments, source="maskattn-torch", target="canonical", config=CONFIG)
        moved = moved.map(lambda held: held | {"out.kernel": held["out.kernel"][::-1]})
        moments = optimizers.convert(moved, source="canonical", target="maskattn-torch", config=CONFIG)
    resumed = torch_run(make, half[0], 5, None if fault == "nothing carried" else moments)
    assert judge((*resumed[:2], half[2] + resumed[2]), whole) > 1e6 * standards.value("tier3.float64")
    faithful = torch_run(make, half[0], 5, half[1])
    assert judge((*faithful[:2], half[2] + faithful[2]), whole) == 0
