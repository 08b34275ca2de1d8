"""maskattn for JAX.

Importing this package registers masks and biases as pytrees: they pass through jit, vmap, scan, grad and shardings.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

try:
    import flax as _flax  # noqa: F401
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"maskattn_jax needs JAX and Flax ({error}): pip install 'maskattn[jax]'", name=error.name
    ) from error

from maskattn_jax import linen, losses, lower, optimizers, params
from maskattn_jax.corruption import corrupt
from maskattn_jax.flax import attention_fn
from maskattn_jax.functional import attention, explain
from maskattn_jax.kernels.merging import merge
from maskattn_jax.multihead import MultiHeadAttention
from maskattn_jax.seed import Attention

if TYPE_CHECKING:
    from maskattn_jax import models

lower.register()

__all__ = [
    "Attention",
    "MultiHeadAttention",
    "attention",
    "attention_fn",
    "corrupt",
    "explain",
    "linen",
    "losses",
    "lower",
    "merge",
    "models",
    "optimizers",
    "params",
]


def __getattr__(name: str) -> object:
    """Whole models are loaded when they are asked for."""
    if name == "models":
        return importlib.import_module("maskattn_jax.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
