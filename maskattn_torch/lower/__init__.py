"""Masks and biases as PyTorch tensors, as pytrees, and as the objects of PyTorch's own attention functions."""

from __future__ import annotations

from maskattn_torch.lower._binding import bind, check, register
from maskattn_torch.lower._dense import allowed, bias, to_additive, to_dense
from maskattn_torch.lower.backends import to_block_mask

__all__ = ["allowed", "bias", "bind", "check", "register", "to_additive", "to_block_mask", "to_dense"]
