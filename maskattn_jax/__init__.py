"""maskattn for JAX.

Importing this package registers masks and biases as pytrees: they pass through jit, vmap, scan, grad and shardings.
"""

from __future__ import annotations

import importlib
from typing import Any

from maskattn_jax import lower

lower.register()

_EXPORTS = {
    "attention": "maskattn_jax.functional",
    "MultiHeadAttention": "maskattn_jax.multihead",
    "Attention": "maskattn_jax.seed",
}

__all__ = ["Attention", "MultiHeadAttention", "attention", "lower"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
