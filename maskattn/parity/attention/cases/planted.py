"""Cases of values planted where no query may reach."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maskattn import masks
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases.mask_table import holed
from maskattn.parity.attention.cases.shapes import SHAPES
from maskattn.parity.draws import Draws


def entries() -> Iterator[Case]:
    """NaN, infinities and a huge number in keys and values that no query may reach: nothing may change."""
    shape = SHAPES["square"]
    for word, number in {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "huge": 6e4}.items():
        for kind in ("padding", "dense", "causal"):
            for dtype in ("float32", "float16") if word == "nan" else ("float32",):
                name = f"planted/{word}/{kind}/{dtype}"
                draws = Draws(name)
                mask: masks.Mask = masks.KeyPadding(np.array([24, 0, 5, 17]))
                if kind == "dense":
                    mask = holed(shape, draws)
                elif kind == "causal":
                    mask = masks.Causal(-3) & masks.KeyPadding(np.array([24, 9, 5, 17]))
                tags = frozenset({"smoke", "planted"})
                yield Case(name, "planted", shape, dtype, mask, plant=number, seed=draws.integer(0, 1 << 30), tags=tags)
