"""What an optimizer remembers of each parameter, moved between PyTorch and optax.

The moments of a parameter have its shape, so they convert as it does: ``OptimizerState`` keeps them under the
parameters' names, and ``convert`` passes each kind of moment through the same conversion as the weights.

>>> import numpy as np
>>> from maskattn import optimizers
>>> group = {"params": [0], "lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
>>> saved = {"state": {0: {"momentum_buffer": np.ones(3)}}, "param_groups": [group]}
>>> optimizers.from_torch(saved, ["proj.bias"]).slots
{'trace': {'proj.bias': array([1., 1., 1.])}}
"""

from __future__ import annotations

from maskattn.optimizers._optax import from_optax, to_optax
from maskattn.optimizers._state import OptimizerState, convert
from maskattn.optimizers._torch import from_torch, to_torch

__all__ = ["OptimizerState", "convert", "from_optax", "from_torch", "to_optax", "to_torch"]
