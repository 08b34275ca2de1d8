"""The parts of a layer in exact arithmetic, on this framework's arrays."""

from __future__ import annotations

from maskattn.modules.exact import ExactParts
from maskattn_jax.kernels.exact.rules import EXACT, linear
from maskattn_jax.layer import LAYER as PLAIN

__all__ = ["LAYER"]

#: What modules call in place of `maskattn_jax.layer.LAYER`.
LAYER = ExactParts(EXACT, linear, PLAIN)
