"""Attention as anybody would write it in NumPy: the yardstick for "no worse than usual". Not an oracle.

Computed in the case's dtype (float32 for the narrow ones, rounded once at the end), with no care for rounding.
"""

from __future__ import annotations

import numpy as np

from maskattn.parity.attention.case import Case
from maskattn.parity.attention.checks import options, table_sums
from maskattn.typing import NumPyArray as Array


def run(case: Case, inputs: dict[str, Array], cotangent: dict[str, Array]) -> dict[str, Array]:
    """Output, lse and gradients of an attention case, under the names that adapters use."""
    s, dtype, given = case.shape, case.lse_dtype, options(case, inputs)
    groups = s.heads // s.kv_heads
    scale = dtype.type(s.head_dim**-0.5 if case.scale is None else case.scale)

    def heads_first(x: Array, repeat: int = 1) -> Array:
        return np.repeat(np.nan_to_num(x.astype(dtype), posinf=0, neginf=0).transpose(0, 2, 1, 3), repeat, axis=1)

    q, d_output = heads_first(inputs["query"]), heads_first(cotangent["output"])
    k, v = heads_first(inputs["key"], groups), heads_first(inputs["value"], groups)
    d_lse = cotangent["lse"].astype(dtype).transpose(0, 2, 1)[..., None]
    with np.errstate(all="ignore"):
        logits = scale * (q @ k.swapaxes(-1, -2))
        if case.softcap is not None:
            slope = np.tanh(logits / dtype.type(case.softcap))
            logits = dtype.type(case.softcap) * slope
        allowed = inputs["mask"]
        if given["bias"] is not None:
            logits = logits + given["bias"].astype(dtype)
            allowed = allowed & (given["bias"] != -np.inf)
        logits = np.where(allowed, logits, -np.inf)
        highest = logits.max(axis=-1, keepdims=True)
        if case.sinks:
            sinks = inputs["sinks"].astype(dtype)[None, :, None, None]
            highest = np.maximum(highest, sinks)
        empty = np.isneginf(highest)
        shift = np.where(empty, 0, highest)
        weights = np.exp(logits - shift)
        total = weights.sum(axis=-1, keepdims=True)
        if case.sinks:
            total = total + np.exp(sinks - shift)
        live = weights / np.where(empty, 1, total)
        p = np.where(empty, dtype.type(1 / s.kv_len), live) if given["empty_rows"] == "mean" else live
        lse = np.where(empty, -np.inf, shift + np.log(total))
        kept = (
            np.where(case.dropped["keep"], 1 / dtype.type(1 - case.dropout_rate), 0) if case.dropped else dtype.type(1)
        )
        output = (p * kept) @ v
        if given["empty_rows"] == "nan":
            output = np.where(empty, np.nan, output)
            d_output = np.where(empty, 0, d_output)
        dp = kept * (d_output @ v.swapaxes(-1, -2))
        delta = (live * dp).sum(axis=-1, keepdims=True)
        ds = live * (dp - delta + d_lse)
        draw = ds if case.softcap is None else ds * (1 - slope * slope)

    def lengths_first(x: Array, grouped: bool = False) -> Array:
        if grouped:
            x = x.reshape(s.batch, s.kv_heads, groups, *x.shape[2:]).sum(axis=2)
        return x.transpose(0, 2, 1, 3).astype(case.numpy_dtype)

    results = {
        "output": lengths_first(output),
        "lse": lse[..., 0].transpose(0, 2, 1).astype(dtype),
        "d_query": lengths_first(scale * (draw @ k)),
        "d_key": lengths_first(scale * (draw.swapaxes(-1, -2) @ q), grouped=True),
        "d_value": lengths_first((p * kept).swapaxes(-1, -2) @ d_output, grouped=True),
    }
    if isinstance(case.bias, str):
        axes = tuple(i for i, n in enumerate(inputs["bias"].shape) if n == 1 and s.scores[i] != 1)
        results["d_bias"] = ds.sum(axis=axes, keepdims=True).astype(case.numpy_dtype)
    if case.table is not None:
        axes = tuple(i for i, n in enumerate(np.shape(given["bias"])) if n == 1 and s.scores[i] != 1)
        results["d_table"] = table_sums(case, ds.sum(axis=axes, keepdims=True)).astype(case.numpy_dtype)
    if case.sinks:
        share = np.exp(sinks - highest) / total
        results["d_sinks"] = (share * (d_lse - delta)).sum(axis=(0, 2, 3)).astype(case.numpy_dtype)
    return results
