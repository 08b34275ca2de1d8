"""Autocast on every kind of device, those included that PyTorch's own functions refuse ("meta", say)."""

from __future__ import annotations

import contextlib

import torch

__all__ = ["is_on", "off"]


def off(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which nothing that runs on this device is computed in half precision unasked."""
    return torch.autocast(device.type, enabled=False) if is_on(device) else contextlib.nullcontext()


def is_on(device: torch.device) -> bool:
    """Whether autocast is on for what runs on this device."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
