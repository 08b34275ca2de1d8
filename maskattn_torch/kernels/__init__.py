"""The kernels of this twin, by name: adding one is a file and a line here."""

from __future__ import annotations

from types import ModuleType

from maskattn_torch.kernels import reference

KERNELS: dict[str, ModuleType] = {"reference": reference}

__all__ = ["KERNELS"]
