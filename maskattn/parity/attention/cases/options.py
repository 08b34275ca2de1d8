"""Cases of the options of attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskattn import biases, masks
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.attention.cases.mask_table import holed
from maskattn.parity.attention.cases.shapes import DROPOUT_RATE, DTYPES, SHAPES
from maskattn.parity.draws import Draws

#: Options are tried on one small grouped-query shape: each combination is a compilation in JAX.
OPTIONS = Shape(batch=2, q_len=5, kv_len=7, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)


def _additive(shape: Shape, draws: Draws) -> Any:
    """The seed module's bias: -10000 where a padded key would be."""
    return biases.Additive(masks.KeyPadding(draws.integers(1, shape.kv_len + 1, (shape.batch,))))


_ALL: dict[str, Any] = {"scale": 0.61, "softcap": 4.0, "sinks": True, "bias": "dense-broadcast"}


def _option_cases() -> dict[str, dict[str, Any]]:
    return {
        "plain": {},
        "scale": {"scale": 0.37},
        "softcap": {"softcap": 2.5},
        "sinks": {"sinks": True},
        "bias": {"bias": "dense"},
        "bias-inf": {"bias": "dense-inf"},
        "additive": {"bias": "additive"},
        "all": _ALL,
        "large-logits": {"spread": 40.0},
        "empty-mean": {"empty_rows": "mean"},
        "empty-nan": {"empty_rows": "nan"},
        "empty-error": {"empty_rows": "error"},
        "empty-mean-sinks": {"empty_rows": "mean", "sinks": True},
        "dropout": {"dropout_rate": DROPOUT_RATE},
        "dropout-all": {**_ALL, "dropout_rate": DROPOUT_RATE, "dropout_broadcast": ("batch", "heads")},
        "empty-error-none": {"empty_rows": "error", "mask": masks.Causal()},
    }


def entries() -> Iterator[Case]:
    """Every option alone, some together, every policy for empty rows; in four dtypes where rounding could matter."""
    for option, given in _option_cases().items():
        in_all = option in ("plain", "all", "dropout")
        for dtype in DTYPES if in_all else ("float32",):
            name = f"options/{option}/{dtype}"
            draws = Draws(name)
            fields = {"mask": holed(OPTIONS, draws), **given}
            if fields.get("bias") == "additive":
                fields["bias"] = _additive(OPTIONS, draws)
            tags = frozenset({"smoke", option})
            yield Case(name, "options", OPTIONS, dtype, seed=draws.integer(0, 1 << 30), tags=tags, **fields)
    # Products of queries and keys that float16 cannot hold: it must be enough to hold the inputs.
    yield Case(
        "options/overflow/float16", "options", OPTIONS, "float16", masks.Causal(3), spread=1.5e4, scale=1e-4, seed=5
    )
    yield Case("options/no-mask/float32", "options", SHAPES["wide"], "float32", None, seed=11)
