"""What a live optimizer remembers <-> ``maskattn.optimizers.OptimizerState``, with no file between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from maskattn import arrays
from maskattn.optimizers import OptimizerState, from_torch, to_torch

__all__ = ["dump", "load"]


def dump(optimizer: torch.optim.Optimizer, names: Sequence[str] | None = None) -> OptimizerState:
    """The moments of a ``torch.optim`` Adam, AdamW or SGD by parameter name: new NumPy arrays.

    Args:
        optimizer: the optimizer. names: the names of its parameters in the order it was given them, for example
            ``dict(model.named_parameters())``; needed unless it was built from ``model.named_parameters()``.

    Raises:
        ValueError: one error that lists everything that has no counterpart, see ``maskattn.optimizers.from_torch``.
        TypeError: not an optimizer.
    """
    return from_torch(_state_dict(optimizer), None if names is None else list(names))


def load(optimizer: torch.optim.Optimizer, state: OptimizerState, names: Sequence[str] | None = None) -> None:
    """Writes moments and the step count of ``state`` into ``optimizer``, in place; its hyperparameters stay.

    Args as for ``dump``. Names, shapes and dtypes must be those of its parameters; everything is checked before
    anything is written.

    Raises:
        ValueError: one error that lists everything that does not fit, see ``maskattn.optimizers.to_torch``.
        TypeError: not an optimizer.
    """
    template = _state_dict(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stored = [name for group in template["param_groups"] for name in group.get("param_names", ())]
    ordered = stored if names is None else list(names)
    held = dict(zip(ordered, parameters, strict=False))
    new = to_torch(state, template, held, None if names is None else ordered)
    for entry in new["state"].values():
        entry.update({key: arrays.to_torch(np.array(array, order="C", copy=True)) for key, array in entry.items()})
    optimizer.load_state_dict(new)


def _state_dict(optimizer: object) -> dict[str, Any]:
    """The optimizer's state with tensors copied to NumPy arrays."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__qualname__}")
    saved = optimizer.state_dict()
    saved["state"] = {
        number: {key: _copied(value) for key, value in entry.items()} for number, entry in saved["state"].items()
    }
    return dict(saved)


def _copied(value: object) -> Any:
    return np.array(arrays.to_numpy(value), copy=True) if isinstance(value, torch.Tensor) else value
