"""Whole models of the JAX twin in Flax's and its neighbours' hands: Linen, Orbax, optax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import meta

from maskattn import models, standards
from maskattn.parity.against.hurry import HURRY
from maskattn_jax.models import Model

pytestmark = pytest.mark.hurried

CONFIG = {"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 20}
CONFIG |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = np.arange(1, 13).reshape(2, 6)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(models.describe(CONFIG))


def paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


@pytest.mark.slow
def test_linen_has_it_as_a_module(model: Model) -> None:
    """Its parameters are those of the NNX module, by the same paths: a state moves from one to the other as it is."""
    linen = nnx.bridge.ToLinen(Model, args=(model.table,), skip_rng=True)
    variables = linen.init(jax.random.key(0), IDS)
    held = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert paths(meta.unbox(variables["params"])) == paths(held)
    changed = jax.tree.map(lambda x: x * 2, held)
    found = linen.apply({**variables, "params": changed}, IDS).logits
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, changed)
    right = nnx.merge(nnx.split(model)[0], state)(IDS).logits
    assert np.asarray(found).tobytes() == np.asarray(right).tobytes()

    def loss(params: Any) -> Any:
        return (linen.apply({**variables, "params": params}, IDS).logits ** 2).mean()

    steps = optax.adamw(1e-3)
    first, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=HURRY)(changed)
    updates, _ = steps.update(gradient, steps.init(changed), changed)
    assert loss(optax.apply_updates(changed, updates)) < first


def test_orbax_has_its_state(model: Model, tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    graph, state = nnx.split(model)
    with ocp.StandardCheckpointer() as files:
        files.save(tmp_path / "state", state)
        files.wait_until_finished()
        empty = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        found = nnx.merge(graph, files.restore(tmp_path / "state", empty))
    held, again = (dict(nnx.to_flat_state(nnx.state(one))) for one in (model, found))
    assert held.keys() == again.keys()
    assert all(np.asarray(x[...]).tobytes() == np.asarray(again[path][...]).tobytes() for path, x in held.items())


def test_it_trains_under_jit(model: Model) -> None:
    one = nnx.clone(model)
    optimizer = nnx.Optimizer(one, optax.adamw(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(one: Model, optimizer: Any) -> Any:
        found, gradient = nnx.value_and_grad(lambda one: (one(IDS).logits ** 2).mean())(one)
        optimizer.update(one, gradient)
        return found

    first, second = (float(step(one, optimizer)) for _ in range(2))
    assert second < first


@pytest.mark.slow
def test_it_is_mapped_and_exported(model: Model) -> None:
    """Over models whose numbers are stacked, and as a function that needs the library no longer."""
    graph, state = nnx.split(model)

    def run(state: Any, ids: Any) -> Any:
        return nnx.merge(graph, state)(ids, hidden_states=True)

    right = jax.jit(run, compiler_options=HURRY)(state, IDS)
    two = jax.tree.map(lambda x: np.stack([x, -x]), state)
    mapped = jax.jit(jax.vmap(run, in_axes=(0, None)), compiler_options=HURRY)(two, IDS)
    exported = jax.export.export(jax.jit(run))(state, IDS).call(state, IDS)
    assert isinstance(exported, models.Output)
    for name in ("hidden", "logits"):
        expected = np.asarray(getattr(right, name))
        for found in (getattr(mapped, name)[0], getattr(exported, name)):
            assert standards.model_share(np.asarray(found), expected) <= 1
