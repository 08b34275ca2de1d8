"""Cases of the biases that are objects."""

from __future__ import annotations

from collections.abc import Iterator

from maskattn import biases, masks
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.draws import Draws

#: Positions of a window of 2 x 3, in two batch rows and three heads.
WINDOW = Shape(batch=2, q_len=6, kv_len=6, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)


def entries() -> Iterator[Case]:
    """ALiBi in both forms, T5's buckets and Swin's table, and what further biases give as `examples`, under a mask that
    leaves an empty row; tables are differentiated."""
    for dtype in ("float32", "float64"):
        draws = Draws(f"bias/{dtype}")

        def table(rows: int, heads: int, draws: Draws = draws, dtype: str = dtype) -> object:
            return draws.normal((rows, heads)).astype(dtype)

        made: dict[str, biases.Bias] = {
            "t5": biases.T5Buckets(table(8, WINDOW.heads), max_distance=5),
            "relative-table": biases.RelativeTable(table(15, WINDOW.heads), (2, 3)),
        }
        if dtype == "float32":
            made |= {
                "alibi": biases.ALiBi(WINDOW.heads),
                "alibi-key": biases.ALiBi(WINDOW.heads, form="key"),
                "t5-causal": biases.T5Buckets(table(6, 1), max_distance=5, bidirectional=False, offset=2),
            }
        yield from (_case(f"bias/{name}/{dtype}", dtype, bias) for name, bias in made.items())
    for name in biases.__all__:
        for number, bias in enumerate(getattr(biases, name).examples(WINDOW, Draws(f"bias/{name}"))):
            yield _case(f"bias/{name}/float32/{number}", "float32", bias)


def _case(case_id: str, dtype: str, bias: biases.Bias) -> Case:
    mask = masks.Causal(1) & masks.KeyPadding([WINDOW.kv_len, 0])
    return Case(case_id, "bias", WINDOW, dtype, mask, bias=bias, seed=Draws(case_id).integer(0, 1 << 30))
