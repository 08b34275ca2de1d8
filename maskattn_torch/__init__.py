"""maskattn for PyTorch.

Importing this package registers masks and biases as pytrees: they pass through torch.compile and torch.func.vmap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"maskattn_torch needs PyTorch ({error}): pip install 'maskattn[torch]'", name=error.name
    ) from error

from maskattn_torch import losses, lower, mha, optimizers, params
from maskattn_torch.corruption import corrupt
from maskattn_torch.functional import attention, explain
from maskattn_torch.hugging_face import register
from maskattn_torch.kernels.merging import merge
from maskattn_torch.multihead import MultiHeadAttention
from maskattn_torch.sdpa import scaled_dot_product_attention
from maskattn_torch.seed import Attention

if TYPE_CHECKING:
    from maskattn_torch import models

lower.register()

compile_flex: Literal["auto", "never"] = "auto"
"""Whether kernel="auto" may compile FlexAttention, which takes some seconds for each kind of call: "auto" does so for
large calls on CUDA that no kernel of PyTorch's does without the whole score matrix, or without visiting what a mask
empties; "never" does not. kernel="blockwise", asked for by name, compiles it whatever this says."""

__all__ = [
    "Attention",
    "MultiHeadAttention",
    "attention",
    "compile_flex",
    "corrupt",
    "explain",
    "losses",
    "lower",
    "merge",
    "mha",
    "models",
    "optimizers",
    "params",
    "register",
    "scaled_dot_product_attention",
]


def __getattr__(name: str) -> object:
    """Whole models are loaded when they are asked for."""
    if name == "models":
        return importlib.import_module("maskattn_torch.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
