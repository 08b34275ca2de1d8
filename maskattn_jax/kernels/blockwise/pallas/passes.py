"""The two passes of a call by these kernels, with the signatures that the passes by loops have."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from maskattn_jax.kernels.blockwise.pallas.bias_call import run_bias
from maskattn_jax.kernels.blockwise.pallas.call import Prepared, run_backward, run_forward
from maskattn_jax.kernels.blockwise.tiled_call import Conditions, Options, float_leaves
from maskattn_jax.kernels.blockwise.tiling import CallTiling


def forward(
    tiling: CallTiling,
    options: Options,
    query: Array,
    key: Array,
    value: Array,
    floats: list[Array],
    sinks: Array | None,
    conditions: Conditions,
) -> tuple[Array, Array, Array | None]:
    """The output [B, L, H, Dv] in the dtype of the query, the log-sum-exp [B, L, H], and `_found` (None: no bias)."""
    prepared = Prepared.of(tiling, options, query, value, sinks, conditions, float_leaves(conditions.bias)[1](floats))
    return run_forward(prepared, query, key, value)


def gradients(
    tiling: CallTiling,
    options: Options,
    arrays: Any,
    output: Array,
    lse: Array,
    d_output: Array,
    d_lse: Array,
) -> tuple[Any, ...]:
    """Of query, key and value; of the bias's float arrays, in a list; of the sinks [H], or None. In their dtypes."""
    query, key, value, floats, sinks, conditions = arrays
    prepared = Prepared.of(tiling, options, query, value, sinks, conditions, float_leaves(conditions.bias)[1](floats))
    empty = lse == -jnp.inf
    wide = d_output.astype(jnp.float32) * output.astype(jnp.float32)
    delta = jnp.where(empty, 0.0, jnp.sum(wide, axis=-1) - d_lse)
    d_sinks = None
    if sinks is not None:
        shift = jnp.where(empty, 0.0, lse)
        d_sinks = -jnp.sum(jnp.exp(sinks.astype(jnp.float32) - shift) * delta, axis=(0, 1)).astype(sinks.dtype)
    numbers = (jnp.swapaxes(x, 1, 2) for x in (lse, delta))
    tensors = (query, key, value, d_output.astype(query.dtype), *numbers)
    d_bias = [x.astype(y.dtype) for x, y in zip(run_bias(prepared, tensors) if floats else [], floats, strict=True)]
    return (*run_backward(prepared, *tensors), d_bias, d_sinks)
