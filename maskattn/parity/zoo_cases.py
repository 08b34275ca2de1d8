"""Cases of the recipes and of the biases that are objects."""

from __future__ import annotations

import math
from collections.abc import Iterator

from maskattn import biases as biases_, masks, recipes as recipes_
from maskattn.parity.cases import Case
from maskattn.parity.draws import Draws
from maskattn.parity.mask_table import Shape

#: Both lengths of a recipe that fits them, so that few shapes are compiled.
LENGTH = 12
#: Positions of a window of 2 x 3, in two batch rows and three heads.
WINDOW = Shape(batch=2, q_len=6, kv_len=6, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)


def recipes() -> Iterator[Case]:
    """Every recipe's example, in float32."""
    for name, example in recipes_.EXAMPLES.items():
        sizes = example.mask.sizes()
        batch = math.lcm(2, sizes.get("batch", 1), sizes.get("batch_multiple", 1))
        usual = {"batch": batch, "heads": 2, "q_len": LENGTH, "kv_len": LENGTH}
        fits = not example.mask.conflicts(usual) and "kv_len" not in sizes
        q_len, kv_len = (LENGTH, LENGTH) if fits else (example.q_len, example.kv_len)
        shape = Shape(batch, q_len, kv_len, heads=2, kv_heads=1, head_dim=5, v_head_dim=3)
        case_id = f"recipe/{name}/float32"
        yield Case(case_id, "recipe", shape, "float32", example.mask, seed=Draws(case_id).integer(0, 1 << 30))


def biases() -> Iterator[Case]:
    """ALiBi in both forms, T5's buckets and Swin's table, under a mask that leaves an empty row; tables are
    differentiated."""
    for dtype in ("float32", "float64"):
        draws = Draws(f"bias/{dtype}")

        def table(rows: int, heads: int, draws: Draws = draws, dtype: str = dtype) -> object:
            return draws.normal((rows, heads)).astype(dtype)

        made: dict[str, biases_.Bias] = {
            "t5": biases_.T5Buckets(table(8, WINDOW.heads), max_distance=5),
            "relative-table": biases_.RelativeTable(table(15, WINDOW.heads), (2, 3)),
        }
        if dtype == "float32":
            made |= {
                "alibi": biases_.ALiBi(WINDOW.heads),
                "alibi-key": biases_.ALiBi(WINDOW.heads, form="key"),
                "t5-causal": biases_.T5Buckets(table(6, 1), max_distance=5, bidirectional=False, offset=2),
            }
        for name, bias in made.items():
            mask = masks.Causal(1) & masks.KeyPadding([WINDOW.kv_len, 0])
            case_id = f"bias/{name}/{dtype}"
            seed = Draws(case_id).integer(0, 1 << 30)
            yield Case(case_id, "bias", WINDOW, dtype, mask, bias=bias, seed=seed)
