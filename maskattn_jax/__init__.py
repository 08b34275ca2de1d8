"""maskattn for JAX.

Importing this package registers masks and biases as pytrees: they pass through jit, vmap, scan, grad and shardings.
"""

from __future__ import annotations

from maskattn_jax import linen, losses, lower, optimizers, params
from maskattn_jax.corruption import corrupt
from maskattn_jax.flax import attention_fn
from maskattn_jax.functional import attention, explain
from maskattn_jax.kernels.merging import merge
from maskattn_jax.multihead import MultiHeadAttention
from maskattn_jax.seed import Attention

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
    "optimizers",
    "params",
]
