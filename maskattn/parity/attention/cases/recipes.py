"""Cases of the recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from maskattn import recipes
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.draws import Draws

#: Both lengths of a recipe that fits them, so that few shapes are compiled.
LENGTH = 12


def entries() -> Iterator[Case]:
    """Every recipe's example, in float32."""
    for name, example in recipes.EXAMPLES.items():
        sizes = example.mask.sizes()
        batch = math.lcm(2, sizes.get("batch", 1), sizes.get("batch_multiple", 1))
        usual = {"batch": batch, "heads": 2, "q_len": LENGTH, "kv_len": LENGTH}
        fits = not example.mask.conflicts(usual) and "kv_len" not in sizes
        q_len, kv_len = (LENGTH, LENGTH) if fits else (example.q_len, example.kv_len)
        shape = Shape(batch, q_len, kv_len, heads=2, kv_heads=1, head_dim=5, v_head_dim=3)
        case_id = f"recipe/{name}/float32"
        yield Case(case_id, "recipe", shape, "float32", example.mask, seed=Draws(case_id).integer(0, 1 << 30))
