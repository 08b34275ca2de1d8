"""The parts of a layer in exact arithmetic, on this framework's arrays."""

from __future__ import annotations

from maskattn.modules.exact import ExactParts
from maskattn_torch.kernels.exact.rules import EXACT, linear
from maskattn_torch.layer import LAYER as PLAIN

__all__ = ["LAYER"]

#: What modules call in place of `maskattn_torch.layer.LAYER`.
LAYER = ExactParts(EXACT, linear, PLAIN)
