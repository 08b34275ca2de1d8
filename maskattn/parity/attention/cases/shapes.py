"""The sizes and dtypes that masks run in."""

from __future__ import annotations

from maskattn.parity.attention.case import Shape

DTYPES = ("float64", "float32", "bfloat16", "float16")
"""In which every mask runs on the first of its shapes."""

#: Few shapes, since JAX compiles each once: grouped, equal and single key/value heads. D and Dv are distinct primes,
#: since equal sizes hide exchanged axes.
SQUARE = Shape(batch=4, q_len=24, kv_len=24, heads=6, kv_heads=2, head_dim=7, v_head_dim=5)
WIDE = Shape(batch=2, q_len=5, kv_len=17, heads=3, kv_heads=3, head_dim=7, v_head_dim=3)
TALL = Shape(batch=3, q_len=13, kv_len=7, heads=5, kv_heads=1, head_dim=3, v_head_dim=5)
ROW = Shape(batch=2, q_len=1, kv_len=11, heads=2, kv_heads=2, head_dim=5, v_head_dim=3)
ONE = Shape(batch=1, q_len=1, kv_len=1, heads=1, kv_heads=1, head_dim=3, v_head_dim=2)
SHAPES = {"square": SQUARE, "wide": WIDE, "tall": TALL, "row": ROW, "one": ONE}
"""By the names that ids of cases have."""
#: Those on which every mask runs by itself; the others are for compositions.
ALONE = ("square", "wide", "tall")

#: Of dropout: one rate, since the exact kernel is compiled for each in JAX.
DROPOUT_RATE = 0.25
