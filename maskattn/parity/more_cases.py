"""The cases that are about something else than one mask: options, biases, policies, planted values, whole modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from maskattn import biases, masks
from maskattn.config import AttentionConfig
from maskattn.parity.cases import DTYPES, SHAPES, Case
from maskattn.parity.draws import Draws
from maskattn.parity.mask_table import Shape, families

#: Options are tried on one small grouped-query shape: each combination is a compilation in JAX.
OPTIONS = Shape(batch=2, q_len=5, kv_len=7, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)
#: A module: E = 11, H = 4, K = 2, D = 3, Dv = 5, out = 13, so that no two axes can be exchanged unseen.
MODULE = Shape(batch=2, q_len=6, kv_len=6, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)
CROSS = Shape(batch=2, q_len=6, kv_len=9, heads=4, kv_heads=2, head_dim=3, v_head_dim=5)
#: Heads all alike, the only sizes at which projections can be exchanged without an error.
EQUAL = Shape(batch=2, q_len=6, kv_len=6, heads=4, kv_heads=4, head_dim=3, v_head_dim=3)


def _holed(shape: Shape, draws: Draws) -> masks.Mask:
    """Random, with row 0 empty everywhere and key 0 reached by nobody."""
    keep = draws.booleans(shape.scores, 0.7)
    keep[:, :, 0, :] = False
    keep[:, :, :, 0] = False
    keep[:, :, 1:, -1] = True
    return masks.Dense(keep)


def _additive(shape: Shape, draws: Draws) -> Any:
    """The seed module's bias: -10000 where a padded key would be."""
    return biases.Additive(masks.KeyPadding(draws.integers(1, shape.kv_len + 1, (shape.batch,))))


_ALL: dict[str, Any] = {"scale": 0.61, "softcap": 4.0, "sinks": True, "bias": "dense-broadcast"}
#: One rate, since the exact kernel is compiled for each in JAX.
RATE = 0.25


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
        "dropout": {"dropout_rate": RATE},
        "dropout-all": {**_ALL, "dropout_rate": RATE, "dropout_broadcast": ("batch", "heads")},
        "empty-error-none": {"empty_rows": "error", "mask": masks.Causal()},
    }


def options() -> Iterator[Case]:
    """Every option alone, some together, every policy for empty rows; in four dtypes where rounding could matter."""
    for option, given in _option_cases().items():
        in_all = option in ("plain", "all", "dropout")
        for dtype in DTYPES if in_all else ("float32",):
            name = f"options/{option}/{dtype}"
            draws = Draws(name)
            fields = {"mask": _holed(OPTIONS, draws), **given}
            if fields.get("bias") == "additive":
                fields["bias"] = _additive(OPTIONS, draws)
            tags = frozenset({"smoke", option})
            yield Case(name, "options", OPTIONS, dtype, seed=draws.integer(0, 1 << 30), tags=tags, **fields)
    # Products of queries and keys that float16 cannot hold: it must be enough to hold the inputs.
    yield Case(
        "options/overflow/float16", "options", OPTIONS, "float16", masks.Causal(3), spread=1.5e4, scale=1e-4, seed=5
    )
    yield Case("options/no-mask/float32", "options", SHAPES["wide"], "float32", None, seed=11)


def dropped() -> Iterator[Case]:
    """Dropout with every mask: the first example of each."""
    for family, cls in families().items():
        for mask in cls.examples(SHAPES["square"], Draws(f"dropout/{family}"))[:1]:
            name = f"dropout/square/float32/{family}"
            seed = Draws(name).integer(0, 1 << 30)
            yield Case(name, "dropout", SHAPES["square"], "float32", mask, dropout_rate=RATE, seed=seed)


def planted() -> Iterator[Case]:
    """NaN, infinities and a huge number in keys and values that no query may reach: nothing may change."""
    shape = SHAPES["square"]
    for word, number in {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "huge": 6e4}.items():
        for kind in ("padding", "dense", "causal"):
            for dtype in ("float32", "float16") if word == "nan" else ("float32",):
                name = f"planted/{word}/{kind}/{dtype}"
                draws = Draws(name)
                mask: masks.Mask = masks.KeyPadding(np.array([24, 0, 5, 17]))
                if kind == "dense":
                    mask = _holed(shape, draws)
                elif kind == "causal":
                    mask = masks.Causal(-3) & masks.KeyPadding(np.array([24, 9, 5, 17]))
                tags = frozenset({"smoke", "planted"})
                yield Case(name, "planted", shape, dtype, mask, plant=number, seed=draws.integer(0, 1 << 30), tags=tags)


def modules() -> Iterator[Case]:
    """Whole `MultiHeadAttention`s, projections included: self- and cross-attention, with and without biases, an empty
    row, heads all alike, and dropout of weights and output."""
    base = {"embed_dim": 11, "num_heads": 4, "num_kv_heads": 2, "head_dim": 3, "v_head_dim": 5, "out_dim": 13}
    kinds: dict[str, tuple[Shape, dict[str, Any], masks.Mask]] = {
        "self": (MODULE, {}, masks.Causal(-1) & masks.KeyPadding(np.array([6, 4]))),  # row 0 is empty
        "cross": (CROSS, {"kdim": 5, "vdim": 7}, masks.KeyPadding(np.array([9, 4]))),
        "equal-heads": (
            EQUAL,
            {"num_kv_heads": 4, "v_head_dim": 3, "qkv_bias": False, "out_bias": False, "scale": 0.31},
            masks.SlidingWindow(2, 1),
        ),
        "dropout": (
            MODULE,
            {"dropout_rate": RATE, "out_dropout_rate": 0.4},
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


def weights(case: Case) -> dict[str, np.ndarray[Any, Any]]:
    """Canonical weights of a case: `query.kernel` [E, H, D], ..., `out.bias` [out] (kernels' variance: 1/E)."""
    c, s, draws = case.config, case.shape, Draws(case.seed * 2 + 3)
    assert c is not None
    kdim, vdim, out = c.kdim or c.embed_dim, c.vdim or c.embed_dim, c.out_dim or c.embed_dim
    shapes = {
        "query": (c.embed_dim, s.heads, s.head_dim),
        "key": (kdim, s.kv_heads, s.head_dim),
        "value": (vdim, s.kv_heads, s.v_head_dim),
    }
    made = {}
    for name, shape in shapes.items():
        made[f"{name}.kernel"] = draws.normal(shape) / np.sqrt(shape[0])
        if c.qkv_bias:
            made[f"{name}.bias"] = draws.normal(shape[1:])
    made["out.kernel"] = draws.normal((s.heads, s.v_head_dim, out)) / np.sqrt(s.heads * s.v_head_dim)
    if c.out_bias:
        made["out.bias"] = draws.normal((out,))
    return {name: array.astype(case.numpy_dtype) for name, array in made.items()}
