"""Which mistake makes a wrong output right: the oracle with each that is known, beside what an implementation gave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from maskattn import standards
from maskattn.diagnose.masks import mistakes
from maskattn.numerics import oracle
from maskattn.parity.attention import checks
from maskattn.parity.attention.case import Case
from maskattn.typing import NumPyArray as Array


def explained(case: Case, inputs: dict[str, Array], output: Array, limit: float) -> str | None:
    """What the output equals within the limit: "the oracle with: the mask is inverted"; None where no mistake is known.

    Args:
      output: [B, L, H, Dv]. limit: on the absolute error, as for the right output.
    """
    right, options = None, {**checks.options(case, inputs), **case.dropped}
    arrays = {name: inputs[name] for name in ("query", "key", "value")} | {"allowed": inputs["mask"]}
    for text, changed in _mistakes(case, arrays, options):
        given = {**arrays, **options, **changed}
        behind, fill = given.pop("behind", False), given.pop("fill", 0.0)
        query, key, value, allowed = (given.pop(name) for name in arrays)
        found = oracle.attention(query, key, value, allowed, **given)
        other = found.output
        if behind:  # weights of all keys, of which the masked ones were left out
            everything = oracle.attention(query, key, value, None, **given)
            with np.errstate(all="ignore"):
                other = other * np.exp(found.lse - everything.lse)[..., None]
        if other.shape != output.shape:
            continue
        error = standards.beyond_rounding(checks.errors(output, other), other, output.dtype)
        # logits near a fill were rounded to its size
        rounded = (
            4 * standards.eps("float32") * abs(fill) * float(np.abs(np.nan_to_num(arrays["value"])).max(initial=0))
        )
        if float(error.max(initial=0)) <= limit + rounded:
            if right is None:
                right = oracle.attention(
                    inputs["query"], inputs["key"], inputs["value"], inputs["mask"], **options
                ).output
            # a mistake that changes nothing here explains nothing
            if float(checks.errors(right, other).max(initial=0)) > 4 * limit:
                return f"equals the oracle with: {text}"
    return None


def _mistakes(case: Case, arrays: dict[str, Array], options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Words, and what the oracle is given instead."""
    size, heads, kv_heads = case.shape.head_dim, case.shape.heads, case.shape.kv_heads
    scale = 1 / math.sqrt(size) if case.scale is None else case.scale
    allowed = np.broadcast_to(arrays["allowed"], case.shape.scores)
    for text, other in mistakes(allowed):
        yield text, {"allowed": other}
        yield f"{text}; an empty row averages", {"allowed": other, "empty_rows": "mean"}
    yield "the mask is applied behind the softmax", {"behind": True}
    for policy in ("zero", "mean", "nan"):
        yield f"an empty row gives {policy}", {"empty_rows": policy}
    for name, other_scale in {
        "no scale": 1.0,
        "1 / sqrt(D)": 1 / math.sqrt(size),
        "1 / D": 1 / size,
        "applied twice": scale * scale,
        "1 / sqrt(embed_dim)": 1 / math.sqrt(size * heads),
    }.items():
        yield f"scale: {name}", {"scale": other_scale}
    bias = options["bias"]
    for fill in (-1e4, -1e3, -100.0, -10.0, -1.0, 0.0):
        added = np.where(allowed, 0.0, fill) + (0.0 if bias is None else bias)
        yield (
            f"what is masked out gets {fill:g} added, not minus infinity",
            {"allowed": None, "bias": added, "fill": fill},
        )
    if bias is not None:
        yield "the bias is left out", {"bias": None}
        yield "the bias has the other sign", {"bias": -np.asarray(bias)}
        yield "the bias is scaled too", {"bias": np.asarray(bias) * scale}
    for name in ("softcap", "sinks"):
        if options[name] is not None:
            yield f"{name} is left out", {name: None}
    if options.get("keep") is not None:
        yield "dropout keeps what it should drop", {"keep": ~options["keep"]}
        yield "one draw of dropout serves all heads and rows of the batch", {"keep": options["keep"][:1, :1]}
        yield "dropout is left out", {"keep": None, "dropout_rate": 0.0}
        yield "what dropout keeps is not divided by 1 - rate", {"dropout_rate": 0.0}
    if kv_heads not in (1, heads):
        tiled = np.arange(heads) % kv_heads
        yield (
            "heads of keys and values are tiled (0, 1, 0, 1), not repeated (0, 0, 1, 1)",
            {name: arrays[name][:, :, tiled] for name in ("key", "value")},
        )
    for one, two in (("query", "key"), ("key", "value"), ("query", "value")):
        if arrays[one].shape == arrays[two].shape:
            yield f"{one} and {two} are exchanged", {one: arrays[two], two: arrays[one]}
