"""What this twin is given, in types; shapes and options are in the words of `maskattn.typing`."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float, Num, UInt32
from torch import Tensor as Array

from maskattn.typing import NumPyArray

__all__ = ["Answer", "Array", "DType", "Device", "Given", "Operand", "Positions", "RandomKey"]

Operand: TypeAlias = Array
"""What query, key, value and sinks may be."""

Given: TypeAlias = Array | NumPyArray
"""What masks and biases may be given as."""

RandomKey: TypeAlias = int | UInt32[Given, " 2"]
"""A seed in [0, 2**31), or two uint32 words."""

Positions: TypeAlias = Num[Given, "*#B L"] | tuple[Num[Given, "*#B L"], Num[Given, "*#B S"]]
"""Where tokens stand, int [L] or [B, L]; or those of queries, and those of keys."""

Answer: TypeAlias = Float[Array, "*B L out_dim"] | tuple[object, ...]
"""What a module returns: its output, or a tuple of it and what was asked for."""

DType: TypeAlias = torch.dtype
"""What names a dtype."""

Device: TypeAlias = torch.device | str | int | None
"""Where a tensor is to be."""
