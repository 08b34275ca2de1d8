"""What may attend to what: one mask per file. True = may attend, everywhere.

Masks combine with `&`, `|` and `~`; see `Mask` for what all of them can do. `fold` and `rebuild` walk an expression.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from maskattn._fields import data, on_subclass, part
from maskattn.masks._core import (
    And,
    Empty,
    Full,
    Mask,
    Not,
    Or,
    check_mask as check_mask,
    evaluate as evaluate,
    fold,
    library_classes as library_classes,
    rebuild,
    require_mask as require_mask,
)
from maskattn.masks._draw import draw
from maskattn.masks.axial import Axial
from maskattn.masks.block_causal import BlockCausal
from maskattn.masks.block_sparse import BlockSparse
from maskattn.masks.causal import Causal
from maskattn.masks.chunked import Chunked
from maskattn.masks.dense import Dense
from maskattn.masks.dilated import Dilated
from maskattn.masks.global_tokens import Global
from maskattn.masks.interop.additive import from_additive, to_additive
from maskattn.masks.interop.flash import from_flash_window, to_flash_window
from maskattn.masks.interop.flax import from_flax, to_flax
from maskattn.masks.interop.hugging_face import from_hf, to_hf
from maskattn.masks.interop.hugging_face_models import for_hf
from maskattn.masks.interop.swin import from_swin, to_swin
from maskattn.masks.interop.torch_mha import from_torch_mha, to_torch_mha
from maskattn.masks.json import from_json
from maskattn.masks.key_mask import KeyMask
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.neighborhood import Neighborhood
from maskattn.masks.per_head import PerHead
from maskattn.masks.positions import At, Positioned, Stored
from maskattn.masks.prefix_lm import PrefixLM
from maskattn.masks.query_mask import QueryMask
from maskattn.masks.random_blocks import RandomBlocks
from maskattn.masks.segments import Segments
from maskattn.masks.shifted_window import ShiftedWindow
from maskattn.masks.sliding_window import SlidingWindow
from maskattn.masks.strided import Strided
from maskattn.masks.text import parse
from maskattn.masks.tree import Tree
from maskattn.masks.window_partition import WindowPartition

__all__ = [
    "And",
    "At",
    "Axial",
    "BlockCausal",
    "BlockSparse",
    "Causal",
    "Chunked",
    "Dense",
    "Dilated",
    "Empty",
    "Full",
    "Global",
    "KeyMask",
    "KeyPadding",
    "Mask",
    "Neighborhood",
    "Not",
    "Or",
    "PerHead",
    "Positioned",
    "PrefixLM",
    "QueryMask",
    "RandomBlocks",
    "Segments",
    "ShiftedWindow",
    "SlidingWindow",
    "Stored",
    "Strided",
    "Tree",
    "WindowPartition",
    "data",
    "draw",
    "fold",
    "for_hf",
    "from_additive",
    "from_flash_window",
    "from_flax",
    "from_hf",
    "from_json",
    "from_swin",
    "from_torch_mha",
    "lint",
    "on_subclass",
    "parse",
    "part",
    "rebuild",
    "to_additive",
    "to_flash_window",
    "to_flax",
    "to_hf",
    "to_swin",
    "to_torch_mha",
]


def __getattr__(name: str) -> Any:
    # it reads schedules, which are made of masks
    if name == "lint":
        return import_module("maskattn.show._lint").lint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
