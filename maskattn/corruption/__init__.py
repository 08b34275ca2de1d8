"""Corruption schemes of masked pre-training, one file each: what a model does not see, as a function of a key.

The same key gives the same result, zero bits different, in NumPy (`scheme.apply`), in JAX, under jit too
(`maskattn_jax.corrupt`), and in PyTorch (`maskattn_torch.corrupt`). See `Scheme`.
"""

from __future__ import annotations

from maskattn.corruption._base import Scheme
from maskattn.corruption._ops import Ops
from maskattn.corruption.beit import BEiT, Blocks
from maskattn.corruption.ijepa import IJEPA, ContextTargets
from maskattn.corruption.mae import MAE, Removed
from maskattn.corruption.mlm import MLM, Masked
from maskattn.corruption.simmim import SimMIM, Units
from maskattn.corruption.t5_spans import Spans, T5Spans

__all__ = [
    "MAE",
    "MLM",
    "BEiT",
    "Blocks",
    "ContextTargets",
    "IJEPA",
    "Masked",
    "Ops",
    "Removed",
    "Scheme",
    "SimMIM",
    "Spans",
    "T5Spans",
    "Units",
]
