"""Optimizer states of PyTorch and optax as one form, byte for byte, and what is refused."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from maskattn import optimizers
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.optimizers import OptimizerState
from tests.frameworks import equinox, jax, jnp, maskattn_jax, maskattn_torch, nnx, optax, torch
from tests.twin import same

pytestmark = pytest.mark.hurried

CONFIG = AttentionConfig(10, 6, num_kv_heads=2, head_dim=5, v_head_dim=3, out_dim=7)
TORCH_SHAPES = layouts.get("maskattn-torch").shapes(CONFIG)
LINEN_SHAPES = layouts.get("flax-linen").shapes(CONFIG)


def random_bits(shapes, dtype, seed=0):
    draw = np.random.default_rng(seed)
    return {
        name: draw.integers(0, 256, size=int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=np.uint8)
        .view(dtype)
        .reshape(shape)
        for name, shape in shapes.items()
    }


def state_of(shapes, dtype=np.float32, rule="adam", step=7):
    slots = {"adam": ("mu", "nu"), "sgd": ("trace",)}[rule]
    return OptimizerState(rule, step, {slot: random_bits(shapes, dtype, seed) for seed, slot in enumerate(slots)})


def torch_optimizer(make=torch.optim.AdamW, dtype=torch.float32, named=True, shapes=TORCH_SHAPES, **options):
    parameters = {name: torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for name, shape in shapes.items()}
    return make(list(parameters.items()) if named else list(parameters.values()), **options)


def linen_params(dtype=jnp.float32):
    return layouts.unflatten({name: jnp.zeros(shape, dtype) for name, shape in LINEN_SHAPES.items()})


def assert_same(left, right):
    assert (left.rule, left.step) == (right.rule, right.step) and list(left.slots) == list(right.slots)
    for slot, held in left.slots.items():
        assert set(held) == set(right.slots[slot])
        for name, array in held.items():
            other = right.slots[slot][name]
            assert type(array) is np.ndarray
            same(array, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_byte_survives_a_round_trip_through_both_optimizers(dtype):
    state = state_of(TORCH_SHAPES, getattr(ml_dtypes, dtype, dtype))
    optimizer = torch_optimizer(dtype=getattr(torch, dtype))
    maskattn_torch.optimizers.load(optimizer, state)
    from_torch = maskattn_torch.optimizers.dump(optimizer)
    assert_same(from_torch, state)
    there = optimizers.convert(from_torch, source="maskattn-torch", target="flax-linen", config=CONFIG)
    live = maskattn_jax.optimizers.load(optax.adamw(1e-3).init(linen_params(getattr(jnp, dtype))), there)
    assert type(live[0]).__name__ == "ScaleByAdamState" and live[0].count == 7 and live[0].count.dtype == jnp.int32
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(live))
    dumped = maskattn_jax.optimizers.dump(live)
    assert_same(dumped, there)
    assert_same(optimizers.convert(dumped, source="flax-linen", target="maskattn-torch", config=CONFIG), state)


MASK = layouts.unflatten({name: not name.endswith("bias") for name in LINEN_SHAPES})
LABELS = layouts.unflatten({name: name.split("/")[0] for name in LINEN_SHAPES})
HALVES = {"query": optax.adam(1e-3), "key": optax.adamw(1e-3), "value": optax.adam(1e-2), "out": optax.adam(1e-3)}
NESTED = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=MASK)),
    "schedule": optax.adamw(optax.cosine_decay_schedule(1e-3, 100)),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=optax.cosine_decay_schedule(1e-3, 100)),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-3), 3),
    "masked": optax.masked(optax.adam(1e-3), MASK),
    "partition": optax.partition(HALVES, LABELS),
}


@pytest.mark.parametrize("nesting", NESTED)
def test_states_inside_other_states(nesting):
    template = NESTED[nesting].init(linen_params())
    shapes = {n: s for n, s in LINEN_SHAPES.items() if nesting != "masked" or not n.endswith("bias")}
    state = state_of(shapes)
    live = maskattn_jax.optimizers.load(template, state)
    assert jax.tree.structure(live) == jax.tree.structure(template)
    assert_same(maskattn_jax.optimizers.dump(live), state)
    counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(live) if str(path[-1]) == ".count"]
    assert counts and all(count == 7 for count in counts)
    updates, _ = NESTED[nesting].update(linen_params(), live, linen_params())  # optax takes it as its own
    assert jax.tree.structure(updates) == jax.tree.structure(linen_params())
    # Without JAX's help: NumPy trees in and out.
    in_numpy = optimizers.to_optax(state, jax.tree.map(np.asarray, template))
    assert_same(optimizers.from_optax(in_numpy), state)


def test_nnx_and_equinox_trees():
    module = nnx.MultiHeadAttention(5, 35, decode=False, rngs=nnx.Rngs(0))
    shapes = layouts.get("flax-nnx").shapes(AttentionConfig(35, 5))
    optimizer = nnx.Optimizer(module, optax.adamw(1e-3), wrt=nnx.Param)
    state = state_of(shapes)
    assert maskattn_jax.optimizers.load(optimizer, state) is None
    assert_same(maskattn_jax.optimizers.dump(optimizer), state)
    assert optimizer.step.get_value() == 7
    bare = optax.adamw(1e-3).init(nnx.state(module, nnx.Param))
    assert_same(maskattn_jax.optimizers.dump(maskattn_jax.optimizers.load(bare, state)), state)

    module = equinox.nn.MultiheadAttention(5, 35, use_key_bias=True, key=jax.random.key(0))
    parameters = equinox.filter(module, equinox.is_array)
    names = ["query_proj.weight", "key_proj.weight", "key_proj.bias", "value_proj.weight", "output_proj.weight"]
    shapes = {name: (35,) if name.endswith("bias") else (35, 35) for name in names}
    live = maskattn_jax.optimizers.load(optax.sgd(0.1, momentum=0.9).init(parameters), state_of(shapes, rule="sgd"))
    assert_same(maskattn_jax.optimizers.dump(live), state_of(shapes, rule="sgd", step=None))
    renamed = maskattn_jax.optimizers.dump(live, ["a", "b", "c", "d", "e"])
    assert renamed.names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("bound", [False, True])
def test_what_is_loaded_is_bound_to_a_device_where_the_state_was(bound):
    """Otherwise `jax.jit` would compile a training step again."""
    template = optax.adamw(1e-3).init(linen_params())
    template = jax.device_put(template, jax.devices()[0]) if bound else template
    loaded = maskattn_jax.optimizers.load(template, state_of(LINEN_SHAPES))
    assert {x.committed for x in jax.tree.leaves(loaded) if x.ndim} == {bound}


def test_parameters_of_pytorch_are_named_by_their_order():
    state = state_of(TORCH_SHAPES, rule="sgd", step=None)
    optimizer = torch_optimizer(torch.optim.SGD, named=False, lr=0.1, momentum=0.9)
    maskattn_torch.optimizers.load(optimizer, state, TORCH_SHAPES)
    assert_same(maskattn_torch.optimizers.dump(optimizer, TORCH_SHAPES), state)
    with pytest.raises(ValueError, match="the state names no parameters: give them"):
        maskattn_torch.optimizers.dump(optimizer)
    with pytest.raises(ValueError, match="expected 4 different names, got 2 of which 2 differ"):
        maskattn_torch.optimizers.dump(optimizer, ["a", "b"])
    named = torch_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    maskattn_torch.optimizers.load(named, state)
    with pytest.raises(ValueError, match="built with other names"):
        maskattn_torch.optimizers.dump(named, list(TORCH_SHAPES)[::-1])


def test_what_is_dumped_is_a_copy():
    optimizer = torch_optimizer()
    state = state_of(TORCH_SHAPES)
    maskattn_torch.optimizers.load(optimizer, state)
    dumped = maskattn_torch.optimizers.dump(optimizer)
    for entry in optimizer.state.values():
        entry["exp_avg"].zero_()
    assert_same(dumped, state)


def test_hyperparameters_are_reported_as_optax_spells_them():
    def notes(make, **options):
        optimizer = torch_optimizer(make, **options)
        state = state_of(TORCH_SHAPES, rule="sgd" if make is torch.optim.SGD else "adam")
        maskattn_torch.optimizers.load(optimizer, state)
        return maskattn_torch.optimizers.dump(optimizer).notes

    adam = "learning_rate=0.1, b1=0.5, b2=0.75, eps=1e-08"
    given = {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.25}
    assert notes(torch.optim.AdamW, **given) == (f"group 0 goes on as optax.adamw({adam}, weight_decay=0.25)",)
    (coupled,) = notes(torch.optim.Adam, **given)
    assert coupled == f"group 0 goes on as optax.chain(optax.add_decayed_weights(0.25), optax.adam({adam}))"
    (sgd,) = notes(torch.optim.SGD, lr=0.1, momentum=0.5, nesterov=True, foreach=True)
    assert "optax.sgd(learning_rate=0.1, momentum=0.5, nesterov=True); foreach: how PyTorch computes" in sgd


def saved(**changes):
    group = {"params": [0, 1], "param_names": ["a", "b"], "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}
    group |= {"weight_decay": 0, "amsgrad": False, "maximize": False}
    entry = {"step": np.float32(3), "exp_avg": np.ones(2, np.float32), "exp_avg_sq": np.ones(2, np.float32)}
    result = {"state": {0: dict(entry), 1: dict(entry)}, "param_groups": [group]}
    for path, value in changes.items():
        if path.startswith("group_"):
            group[path.removeprefix("group_")] = value
        else:
            result["state"][1][path] = value
    return result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"group_amsgrad": True, "max_exp_avg_sq": np.ones(2)},
            "(?s)amsgrad is set.*b: max_exp_avg_sq has no counterp",
        ),
        ({"group_maximize": True}, "maximize is set: the moments have the opposite sign"),
        ({"step": np.float32(4)}, "different numbers of steps.*a 3, b 4"),
        pytest.param(
            {"exp_avg": torch.ones(2, dtype=torch.bfloat16)},
            "exp_avg of b: expected a NumPy array, got torch.Tensor",
            marks=pytest.mark.torch,
        ),
        ({"exp_avg": None}, "b: exp_avg is missing"),
        ({"group_params": [0]}, "expected 1 different names, got 2"),
        ({"group_params": [0, 2]}, "state of parameter 1, which is in no group"),
    ],
)
def test_what_optax_has_no_place_for_is_refused_by_name(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        optimizers.from_torch(saved(**changes))


def test_optimizers_that_are_not_known_are_refused():
    for make, key in ((torch.optim.RAdam, "decoupled_weight_decay"), (torch.optim.RMSprop, "alpha")):
        with pytest.raises(ValueError, match=f"expected Adam, AdamW or SGD, got an optimizer with .*{key}"):
            maskattn_torch.optimizers.dump(torch_optimizer(make))
    with pytest.raises(ValueError, match="no parameter has state: the optimizer has made no update"):
        maskattn_torch.optimizers.dump(torch_optimizer())
    with pytest.raises(ValueError, match="dampening is set: optax's trace adds gradients undamped"):
        maskattn_torch.optimizers.dump(torch_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5))
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got dict"):
        maskattn_torch.optimizers.dump({})
    with pytest.raises(TypeError, match="expected the dictionary that"):
        optimizers.from_torch({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (optax.amsgrad(1e-3), "ScaleByAmsgradState has no counterpart"),
        (optax.lion(1e-3), "ScaleByLionState has no counterpart"),
        (optax.adabelief(1e-3), "ScaleByBeliefState has no counterpart"),
        (optax.MultiSteps(optax.adam(1e-3), 2), "MultiStepsState has no counterpart"),
        (optax.chain(optax.ema(0.9), optax.adam(1e-3)), r"state\[0\]: EmaState has no counterpart"),
        (optax.sgd(0.1), "expected one rule, adam or sgd with momentum, got none"),
        (optax.chain(optax.trace(0.9), optax.adam(1e-3)), "expected one rule, .* got adam and sgd"),
    ],
)
def test_what_pytorch_has_no_place_for_is_refused_by_name(make, message):
    template = make.init({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=message):
        maskattn_jax.optimizers.dump(template)
    with pytest.raises(
        ValueError,
        match=message.replace("expected one rule, .* got", "the optimizer's rule is").replace(
            "expected one rule, adam or sgd with momentum, got none", "the optimizer's rule is none"
        ),
    ):
        maskattn_jax.optimizers.load(template, state_of({"a": (2,)}))


def test_optax_states_that_contradict_themselves_are_refused():
    state = optax.adam(optax.constant_schedule(0.1)).init({"a": jnp.ones(2)})
    state = (state[0], state[1]._replace(count=jnp.asarray(3)))
    with pytest.raises(ValueError, match=r"counts of updates differ.*state\[0\] 0, state\[1\] 3"):
        maskattn_jax.optimizers.dump(state)
    twice = optax.chain(optax.adam(0.1), optax.adam(0.1)).init({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="a: two parts of the state hold mu of it"):
        maskattn_jax.optimizers.dump(twice)
    with pytest.raises(ValueError, match="expected a state of optax, got builtins.int"):
        optimizers.from_optax((1,))
    with pytest.raises(TypeError, match="expected parameters in nested mappings, got ndarray"):
        optimizers.from_optax(optax.adam(0.1).init(np.ones(2))[0]._replace(mu=np.ones(2)))


def test_one_error_lists_every_parameter_that_does_not_fit():
    state = state_of({"a": (2,), "b": (3,), "c": (1,)})
    state.slots["mu"]["b"] = state.slots["mu"]["b"].astype(np.float64)
    parts = (
        r"mu of a: expected shape \[4\], got \[2\]",
        "mu of b: expected dtype float32, got float64",
        "c: the state has mu for it, but the optimizer holds no such parameter",
        "d: the optimizer holds it, but the state has no mu",
        "nu of a: expected shape",
    )
    shapes = {"a": (4,), "b": (3,), "d": (1,)}
    template = optax.adam(1e-3).init({name: jnp.zeros(shape) for name, shape in shapes.items()})
    optimizer = torch_optimizer(shapes=shapes)
    for part in parts:
        with pytest.raises(ValueError, match=part):
            maskattn_jax.optimizers.load(template, state)
        with pytest.raises(ValueError, match=part):
            maskattn_torch.optimizers.load(optimizer, state)
    assert not optimizer.state


def test_steps_that_cannot_be_kept():
    given = {"a": (2,)}
    with pytest.raises(ValueError, match="Adam needs the number of steps taken"):
        maskattn_torch.optimizers.load(torch_optimizer(shapes=given), state_of(given, step=None))
    with pytest.raises(ValueError, match=r"step is 16777217, .* exact up to 16777216"):
        maskattn_torch.optimizers.load(torch_optimizer(shapes=given), state_of(given, step=2**24 + 1))
    with pytest.raises(ValueError, match=r"state\[0\] needs the number of updates made"):
        maskattn_jax.optimizers.load(optax.adam(0.1).init({"a": jnp.zeros(2)}), state_of(given, step=None))
    scheduled = optax.sgd(optax.constant_schedule(0.1), momentum=0.9).init({"a": jnp.zeros(2)})
    sgd = state_of(given, rule="sgd", step=None)
    with pytest.raises(ValueError, match=r"state\[1\] needs the number of updates made"):
        maskattn_jax.optimizers.load(scheduled, sgd)
    assert maskattn_jax.optimizers.load(scheduled, replace(sgd, step=4))[1].count == 4


def test_a_state_is_checked_when_it_is_made():
    for arguments, message in [
        (("adamw", 1, {}), "rule must be one of adam, sgd, got 'adamw'"),
        (("adam", 1, {"mu": {}}), "slots of adam must be mu, nu, got mu"),
        (("adam", -1, {"mu": {}, "nu": {}}), "step must be None or an int of at least 0, got -1"),
        (("adam", 1, {"mu": {"a": np.ones(1)}, "nu": {}}), "a is not in every slot"),
    ]:
        with pytest.raises(ValueError, match=message):
            OptimizerState(*arguments)
