"""Cases of dropout."""

from __future__ import annotations

from collections.abc import Iterator

from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases.mask_table import families
from maskattn.parity.attention.cases.shapes import DROPOUT_RATE, SHAPES
from maskattn.parity.draws import Draws


def entries() -> Iterator[Case]:
    """Dropout with every mask: the first example of each."""
    for family, cls in families().items():
        for mask in cls.examples(SHAPES["square"], Draws(f"dropout/{family}"))[:1]:
            name = f"dropout/square/float32/{family}"
            seed = Draws(name).integer(0, 1 << 30)
            yield Case(name, "dropout", SHAPES["square"], "float32", mask, dropout_rate=DROPOUT_RATE, seed=seed)
