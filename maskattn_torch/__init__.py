"""maskattn for PyTorch.

Importing this package registers masks and biases as pytrees: they pass through torch.compile and torch.func.vmap.
"""

from __future__ import annotations

from maskattn_torch import losses, lower, optimizers, params
from maskattn_torch.corruption import corrupt
from maskattn_torch.functional import attention, explain
from maskattn_torch.kernels.merging import merge
from maskattn_torch.multihead import MultiHeadAttention
from maskattn_torch.seed import Attention

lower.register()

__all__ = [
    "Attention",
    "MultiHeadAttention",
    "attention",
    "corrupt",
    "explain",
    "losses",
    "lower",
    "merge",
    "optimizers",
    "params",
]
