"""Cases of one mask each."""

from __future__ import annotations

from collections.abc import Iterator

from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases.mask_table import families
from maskattn.parity.attention.cases.shapes import ALONE, DTYPES, SHAPES
from maskattn.parity.draws import Draws


def entries() -> Iterator[Case]:
    """Every mask by itself, on three shapes (grouped, full and single key/value heads): all its examples in float32,
    the first in every dtype."""
    for family, cls in families().items():
        for shape_name in ALONE:
            shape = SHAPES[shape_name]
            for variant, mask in enumerate(cls.examples(shape, Draws(f"{family}/{shape_name}"))):
                for dtype in DTYPES if not variant else ("float32",):
                    name = f"{family}/{shape_name}/{dtype}/{variant}"
                    tags = frozenset({"smoke"}) if shape_name == "square" and not variant else frozenset()
                    yield Case(name, family, shape, dtype, mask, seed=Draws(name).integer(0, 1 << 30), tags=tags)
