"""Flax's own attention tests over `maskattn_jax.attention_fn`.

    python benchmarks/peers/flax_attention.py linen .../tests/linen/linen_attention_test.py
    python benchmarks/peers/flax_attention.py nnx .../tests/nnx/nn/attention_test.py

The tests are not part of this repository: they are in the source distribution of flax, whose version should be the
installed one. Only the named one of Flax's two libraries is given our function, in place of its own and as the default
of its modules, so that where a test compares the two, the other is the judge.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import counted
from flax import linen, nnx

from maskattn_jax import attention_fn

REASONS = {
    "linen": {
        "*test_dtype_infer": "known difference: complex numbers are refused",
    },
    "nnx": {
        "*test_invalid_shapes*": "an error of other words",
        "*test_gqa_invalid_heads": "an error of other words",
    },
}


def taking(module: Any) -> None:
    """Make our function the default of a module of Linen."""
    made = module.__init__

    @functools.wraps(made)
    def __init__(self: Any, *given: Any, **options: Any) -> None:
        made(self, *given, **{"attention_fn": attention_fn, **options})

    module.__init__ = __init__


def main() -> int:
    library, *files = sys.argv[1:] or ["", ""]
    if library not in REASONS or not files:
        raise SystemExit(__doc__)
    if library == "linen":
        for module in (linen.MultiHeadDotProductAttention, linen.MultiHeadAttention, linen.SelfAttention):
            taking(module)
        linen.dot_product_attention = attention_fn
    else:
        nnx.MultiHeadAttention.__init__.__kwdefaults__["attention_fn"] = attention_fn
        nnx.dot_product_attention = attention_fn
    return counted.run(files, REASONS[library])


if __name__ == "__main__":
    sys.exit(main())
