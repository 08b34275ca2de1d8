"""Cases of whole modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from maskattn import masks
from maskattn.config import AttentionConfig
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.attention.cases.shapes import DROPOUT_RATE
from maskattn.parity.draws import Draws

#: A module: E = 11, H = 4, K = 2, D = 3, Dv = 5, out = 13, so that no two axes can be exchanged unseen.
MODULE = Shape(batch=2, q_len=6, kv_len=6, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)
CROSS = Shape(batch=2, q_len=6, kv_len=9, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)
#: Heads all alike, the only sizes at which projections can be exchanged without an error.
EQUAL = Shape(batch=2, q_len=6, kv_len=6, heads=4, kv_heads=4, head_dim=3, v_head_dim=3)


def entries() -> Iterator[Case]:
    """Whole `MultiHeadAttention`s, projections included: self- and cross-attention, with and without biases, an empty
    row, heads all alike, softcap with sinks, and dropout of weights and output."""
    base = {"embed_dim": 11, "num_heads": 4, "num_kv_heads": 2, "head_dim": 3, "v_head_dim": 5, "out_dim": 13}
    kinds: dict[str, tuple[Shape, dict[str, Any], masks.Mask]] = {
        "self": (MODULE, {}, masks.Causal(-1) & masks.KeyPadding(np.array([6, 4]))),  # row 0 is empty
        "cross": (CROSS, {"kdim": 5, "vdim": 7}, masks.KeyPadding(np.array([9, 4]))),
        "equal-heads": (
            EQUAL,
            {"num_kv_heads": 4, "v_head_dim": 3, "qkv_bias": False, "out_bias": False, "scale": 0.31},
            masks.SlidingWindow(2, 1),
        ),
        "softcap-sinks": (
            MODULE,
            {"softcap": 3.0, "sinks": True},
            masks.Causal(-1) & masks.KeyPadding(np.array([6, 4])),
        ),
        "dropout": (
            MODULE,
            {"dropout_rate": DROPOUT_RATE, "out_dropout_rate": 0.4},
            masks.Causal(-1) & masks.KeyPadding(np.array([6, 4])),
        ),
    }
    for kind, (shape, changes, mask) in kinds.items():
        for dtype in ("float32", "float64", "bfloat16") if kind == "self" else ("float32",):
            name = f"MultiHeadAttention/{kind}/{dtype}"
            config = AttentionConfig(**{**base, **changes})
            seed = Draws(name).integer(0, 1 << 30)
            tags = frozenset({"smoke", "module"})
            yield Case(name, "MultiHeadAttention", shape, dtype, mask, config=config, seed=seed, tags=tags, spread=1.0)
