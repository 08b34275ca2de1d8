"""Whole models in PyTorch."""

from __future__ import annotations

from maskattn_torch.models.adapters import merged, save_adapter
from maskattn_torch.models.files import load, save
from maskattn_torch.models.modules import Model

__all__ = ["Model", "load", "merged", "save", "save_adapter"]
