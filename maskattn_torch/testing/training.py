"""One model and its optimizer in PyTorch, as the training runs see them: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

import maskattn_torch
from maskattn.arrays import to_numpy, to_torch
from maskattn.models.leaves import Tensor
from maskattn.optimizers import OptimizerState
from maskattn.parity.training.tasks import Optimizer, Task
from maskattn.typing import NumPyArray
from maskattn_torch import optimizers, rng
from maskattn_torch.models import Model
from maskattn_torch.types import Array

__all__ = ["Trainer", "make_optimizer"]


def make_optimizer(settings: Optimizer, model: Model) -> torch.optim.Optimizer:
    """The optimizer of PyTorch with these settings, of all parameters of the model that are trained."""
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
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
        dtype: "float64" or "float32", of parameters and all arithmetic.
        kernel: of attention.
    """

    form = "maskattn-torch"

    def __init__(self, task: Task, settings: Optimizer, dtype: str, kernel: str) -> None:
        self.task, self.settings, self.dtype, self.kernel = task, settings, dtype, kernel
        self.key = rng.key(0)

    def load(self, tensors: Mapping[str, NumPyArray], moments: OptimizerState | None, key: NumPyArray) -> None:
        """Begins, or goes on, from these tensors of the model, as published, what the optimizer remembers (None:
        nothing yet) and a key (uint32 [2]).
        """

        def start(name: str, tensor: Tensor) -> Array:
            return to_torch(np.array(tensors[name], self.dtype))

        self.model = Model(self.task.table, start, adapter=self.task.adapter)
        self.optimizer = make_optimizer(self.settings, self.model)
        if moments is not None:
            optimizers.load(self.optimizer, moments)
        self.key = rng.words(np.array(key))

    def step(self, batch: Mapping[str, NumPyArray]) -> float:
        """One update; the loss before it. The key is split: one half is the step's, the other is kept."""
        self.key, key = rng.split(self.key)
        arrays = {name: to_torch(array) for name, array in batch.items()}
        self.optimizer.zero_grad()
        loss = self.task.loss(maskattn_torch, self.model, arrays, key, self.kernel)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    def dump(self) -> tuple[dict[str, NumPyArray], OptimizerState, NumPyArray]:
        """The tensors of the model, what the optimizer remembers, and the key: what `load` takes."""
        tensors = {name: np.array(to_numpy(array)) for name, array in self.model.state_dict().items()}
        return tensors, optimizers.dump(self.optimizer), self.key.numpy().copy()
