"""What is added to a score, before the mask: one bias per file."""

from __future__ import annotations

from maskattn.biases._base import Bias
from maskattn.biases.additive import Additive
from maskattn.biases.dense import DenseBias

__all__ = ["Additive", "Bias", "DenseBias"]
