"""One model and its optimizer in JAX, as the training runs see them: NumPy in, NumPy out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import maskattn_jax
from maskattn.models import files
from maskattn.models.leaves import Tensor
from maskattn.optimizers import OptimizerState
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.training.tasks import Optimizer, Task
from maskattn.typing import NumPyArray
from maskattn_jax import optimizers, rng
from maskattn_jax.models import Model
from maskattn_jax.models.held import Held, publish
from maskattn_jax.types import Array

__all__ = ["Trainer", "make_optimizer"]


def make_optimizer(settings: Optimizer, model: Model) -> nnx.Optimizer:
    """The optimizer of optax with these settings, of all parameters of the model that are trained."""
    return nnx.Optimizer(model, _rule(settings), wrt=_trained(model.adapter))


def _trained(adapter: object) -> type[nnx.Param]:
    return nnx.Param if adapter is None else nnx.LoRAParam


@functools.cache
def _rule(settings: Optimizer) -> Any:
    """One object for equal settings: for another one, an update would be compiled again."""
    if settings.name == "sgd":
        return optax.sgd(settings.learning_rate, settings.momentum)
    b1, b2 = settings.betas
    return optax.adamw(settings.learning_rate, b1=b1, b2=b2, eps=settings.epsilon, weight_decay=settings.weight_decay)


class Trainer:
    """The model of a task, dropout on, and what the optimizer remembers of it.

    Args:
        task: what is trained.
        settings: of the optimizer.
        dtype: "float64" or "float32", of parameters and all arithmetic; `jax.enable_x64` is on for both.
        kernel: of attention.
    """

    form = "flax-nnx"

    def __init__(self, task: Task, settings: Optimizer, dtype: str, kernel: str) -> None:
        self.task, self.settings, self.dtype, self.kernel = task, settings, dtype, kernel
        self.key = jax.random.key(0)

    def load(self, tensors: Mapping[str, NumPyArray], moments: OptimizerState | None, key: NumPyArray) -> None:
        """Begins, or goes on, from these tensors of the model, as published, what the optimizer remembers (None:
        nothing yet) and a key (uint32 [2]).
        """

        def start(name: str, tensor: Tensor) -> Array:
            return jnp.asarray(np.array(tensors[name], self.dtype).transpose(tensor.order))

        with self._settings():
            self.model = Model(self.task.table, start, adapter=self.task.adapter)
            self.optimizer = make_optimizer(self.settings, self.model)
            if moments is not None:
                optimizers.load(self.optimizer, moments)
        self.key = jax.random.wrap_key_data(jnp.array(key))

    def step(self, batch: Mapping[str, NumPyArray]) -> float:
        """One update; the loss before it. The key is split: one half is the step's, the other is kept."""
        self.key, key = jax.random.split(self.key)
        with self._settings():
            arrays = {name: jnp.asarray(array) for name, array in batch.items()}
            parts = nnx.split(self.model, _trained(self.task.adapter), ...)
            loss, gradient = _gradient(*parts, arrays, key, self.task, self.kernel)
            _update(self.optimizer, self.model, gradient)
            return float(loss)

    def dump(self) -> tuple[dict[str, NumPyArray], OptimizerState, NumPyArray]:
        """The tensors of the model, what the optimizer remembers, and the key: what `load` takes."""
        held, moments = Held(self.model), optimizers.dump(self.optimizer)
        known = files.tensors_of(self.task.table)
        tensors = {name: np.array(publish(known[name], array)) for name, array in held.items()}
        return tensors, moments, np.array(rng.words(self.key))

    def _settings(self) -> Any:
        """For float32 too: otherwise optax computes 1 - b2**count in float32, which loses digits in the first steps."""
        return jax.enable_x64(True)


def _compiled_gradient() -> Any:
    """A compiled function (graph, what is trained, the rest, batch, key, task, kernel) -> (loss, gradient)."""

    @functools.partial(jax.jit, static_argnums=(0, 5, 6), compiler_options=HURRY)
    def gradient(graph: Any, trained: Any, rest: Any, batch: Any, key: Array, task: Task, kernel: str) -> Any:
        def loss(trained: Any) -> Array:
            made: Array = task.loss(maskattn_jax, nnx.merge(graph, trained, rest), batch, key, kernel)
            return made

        return jax.value_and_grad(loss)(trained)

    return gradient


# For all trainers: those of one task and dtype share a compilation, whatever their optimizer.
_gradient = _compiled_gradient()


@nnx.jit
def _update(optimizer: Any, model: Any, gradient: Any) -> None:
    optimizer.update(model, gradient)
