"""Masks from and to the arrays other libraries use. Whatever a mask cannot say exactly is refused, with its place.

An importer reads values (its array must not be traced) and keeps the array's framework; an exporter returns NumPy.
"""

from __future__ import annotations

from maskattn.masks.interop.additive import from_additive, to_additive
from maskattn.masks.interop.flash import from_flash_window, to_flash_window
from maskattn.masks.interop.flax import from_flax, to_flax
from maskattn.masks.interop.hugging_face import from_hf, to_hf
from maskattn.masks.interop.swin import from_swin, to_swin
from maskattn.masks.interop.torch_mha import from_torch_mha, to_torch_mha

__all__ = [
    "from_additive",
    "from_flash_window",
    "from_flax",
    "from_hf",
    "from_swin",
    "from_torch_mha",
    "to_additive",
    "to_flash_window",
    "to_flax",
    "to_hf",
    "to_swin",
    "to_torch_mha",
]
