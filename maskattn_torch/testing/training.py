"""One model and its optimizer in PyTorch, as the training runs see them: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from maskattn.arrays import to_numpy, to_torch
from maskattn.optimizers import OptimizerState
from maskattn.parity.training.tasks import Optimizer, Task
from maskattn.typing import NumPyArray
from maskattn_torch import optimizers, rng
from maskattn_torch.testing.models import TaskModel

__all__ = ["Trainer", "make_optimizer"]


def make_optimizer(settings: Optimizer, model: TaskModel) -> torch.optim.Optimizer:
    """The optimizer of PyTorch with these settings, of all parameters of the model."""
    parameters = list(model.named_parameters())
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, settings.learning_rate, settings.momentum)
    return torch.optim.AdamW(
        parameters,
        settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


class Trainer:
    """The model of a task, dropout on, and what the optimizer remembers of it.

    Args:
        task: what is trained.
        settings: of the optimizer.
        dtype: "float64" or "float32", of parameters, images and all arithmetic.
        kernel: of attention.
    """

    name = "torch"

    def __init__(self, task: Task, settings: Optimizer, dtype: str, kernel: str) -> None:
        self.settings, self.dtype, self.kernel = settings, dtype, kernel
        self.model = TaskModel(task).to(getattr(torch, dtype))
        self.key = rng.key(0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters, by their names in this framework."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    def load(self, tensors: Mapping[str, NumPyArray], moments: OptimizerState | None, key: NumPyArray) -> None:
        """Begins, or goes on, from these parameters, what the optimizer remembers (None: nothing yet) and a key (uint32
        [2]).
        """
        state = {name: to_torch(np.array(array, self.dtype)) for name, array in tensors.items()}
        self.model.load_state_dict(state, strict=True)
        self.optimizer = make_optimizer(self.settings, self.model)
        if moments is not None:
            optimizers.load(self.optimizer, moments)
        self.key = rng.words(np.array(key))

    def step(self, batch: Mapping[str, NumPyArray]) -> float:
        """One update; the loss before it. The key is split: one half is the step's, the other is kept."""
        self.key, key = rng.split(self.key)
        arrays = {name: to_torch(self._narrow(array)) for name, array in batch.items()}
        self.optimizer.zero_grad()
        loss = self.model(arrays, key, self.kernel)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def dump(self) -> tuple[dict[str, NumPyArray], OptimizerState, NumPyArray]:
        """The parameters, what the optimizer remembers, and the key: what `load` takes."""
        tensors = {name: np.array(to_numpy(parameter)) for name, parameter in self.model.named_parameters()}
        return tensors, optimizers.dump(self.optimizer), self.key.numpy().copy()

    def _narrow(self, array: NumPyArray) -> NumPyArray:
        return array.astype(self.dtype) if array.dtype == np.float64 else array
