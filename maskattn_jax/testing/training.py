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
from jax import Array

from maskattn.optimizers import OptimizerState
from maskattn.parity.training.tasks import Optimizer, Task
from maskattn.typing import NumPyArray
from maskattn_jax import optimizers, rng
from maskattn_jax.testing.models import TaskModel

__all__ = ["Trainer", "make_optimizer"]


def make_optimizer(settings: Optimizer, model: TaskModel) -> nnx.Optimizer:
    """The optimizer of optax with these settings, of all parameters of the model."""
    return nnx.Optimizer(model, _rule(settings), wrt=nnx.Param)


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
        dtype: "float64" or "float32", of parameters, images and all arithmetic; `jax.enable_x64` is on for both.
        kernel: of attention.
    """

    name = "jax"

    def __init__(self, task: Task, settings: Optimizer, dtype: str, kernel: str) -> None:
        self.settings, self.dtype, self.kernel = settings, dtype, kernel
        # Without its first numbers, which would be compiled and then replaced.
        self.model = nnx.eval_shape(lambda: TaskModel(task, rngs=nnx.Rngs(params=0)))
        self.key = jax.random.key(0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters, by their names in this framework."""
        return {name: tuple(parameter.shape) for name, parameter in self._parameters().items()}

    def load(self, tensors: Mapping[str, NumPyArray], moments: OptimizerState | None, key: NumPyArray) -> None:
        """Begins, or goes on, from these parameters, what the optimizer remembers (None: nothing yet) and a key (uint32
        [2]).
        """
        held = self._parameters()
        if tensors.keys() != held.keys():
            raise ValueError(f"tensors: missing or left over: {sorted(tensors.keys() ^ held.keys())}")
        with self._settings():
            for name, parameter in held.items():
                parameter.set_value(jnp.array(np.array(tensors[name], self.dtype)))
            self.optimizer = make_optimizer(self.settings, self.model)
            if moments is not None:
                optimizers.load(self.optimizer, moments)
        self.key = jax.random.wrap_key_data(jnp.array(key))

    def step(self, batch: Mapping[str, NumPyArray]) -> float:
        """One update; the loss before it. The key is split: one half is the step's, the other is kept."""
        self.key, key = jax.random.split(self.key)
        with self._settings():
            arrays = {name: jnp.asarray(self._narrow(array)) for name, array in batch.items()}
            loss, gradient = _gradient(self.model, arrays, key, self.kernel)
            _update(self.optimizer, self.model, gradient)
            return float(loss)

    def dump(self) -> tuple[dict[str, NumPyArray], OptimizerState, NumPyArray]:
        """The parameters, what the optimizer remembers, and the key: what `load` takes."""
        tensors = {name: np.array(parameter.get_value()) for name, parameter in self._parameters().items()}
        return tensors, optimizers.dump(self.optimizer), np.array(rng.words(self.key))

    def _narrow(self, array: NumPyArray) -> NumPyArray:
        return array.astype(self.dtype) if array.dtype == np.float64 else array

    def _parameters(self) -> dict[str, Any]:
        nodes = nnx.iter_graph(self.model)
        return {".".join(map(str, path)): node for path, node in nodes if isinstance(node, nnx.Param)}

    def _settings(self) -> Any:
        """For float32 too: otherwise optax computes 1 - b2**count in float32, which loses digits in the first steps."""
        return jax.enable_x64(True)


def _compiled_gradient() -> Any:
    """A compiled function (model, batch, key, kernel) -> (loss, gradient)."""

    @functools.partial(nnx.jit, static_argnums=3)
    def gradient(model: object, batch: Mapping[str, Array], key: Array, kernel: str) -> tuple[Array, Any]:
        return nnx.value_and_grad(lambda model: model(batch, key, kernel))(model)

    return gradient


# For all trainers: those of one task and dtype share a compilation, whatever their optimizer.
_gradient = _compiled_gradient()


@nnx.jit
def _update(optimizer: Any, model: Any, gradient: Any) -> None:
    optimizer.update(model, gradient)
