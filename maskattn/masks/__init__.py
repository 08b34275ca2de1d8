"""What may attend to what: one mask per file. True = may attend, everywhere.

Masks combine with `&`, `|` and `~`; see `Mask` for what all of them can do.
"""

from __future__ import annotations

from maskattn._fields import data, on_subclass, part
from maskattn.masks._base import Mask, draw
from maskattn.masks.algebra import And, Not, Or
from maskattn.masks.causal import Causal
from maskattn.masks.dense import Dense
from maskattn.masks.empty import Empty
from maskattn.masks.full import Full
from maskattn.masks.key_mask import KeyMask
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.positions import At, Positioned
from maskattn.masks.prefix_lm import PrefixLM
from maskattn.masks.query_mask import QueryMask
from maskattn.masks.segments import Segments
from maskattn.masks.shifted_window import ShiftedWindow
from maskattn.masks.sliding_window import SlidingWindow
from maskattn.masks.window_partition import WindowPartition

__all__ = [
    "And",
    "At",
    "Causal",
    "Dense",
    "Empty",
    "Full",
    "KeyMask",
    "KeyPadding",
    "Mask",
    "Not",
    "Or",
    "Positioned",
    "PrefixLM",
    "QueryMask",
    "Segments",
    "ShiftedWindow",
    "SlidingWindow",
    "WindowPartition",
    "data",
    "draw",
    "on_subclass",
    "part",
]
