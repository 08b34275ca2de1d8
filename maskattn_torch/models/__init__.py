"""Whole models in PyTorch."""

from __future__ import annotations

from maskattn_torch.models.adapters import merged, save_adapter
from maskattn_torch.models.modules import Model

__all__ = ["Model", "merged", "save_adapter"]
