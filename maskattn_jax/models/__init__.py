"""Whole models in JAX (NNX)."""

from __future__ import annotations

from maskattn_jax.models.adapters import merged, save_adapter
from maskattn_jax.models.files import load, save
from maskattn_jax.models.modules import Model

__all__ = ["Model", "load", "merged", "save", "save_adapter"]
