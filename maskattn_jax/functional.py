"""attention(...): checks a call, binds its mask and bias to JAX, chooses a kernel and runs it."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskattn import biases, masks
from maskattn._problems import Problems
from maskattn.attention import KernelCannot, check_attention, refuse_empty_rows
from maskattn_jax import auto, lower, rng
from maskattn_jax.dropout import Dropout
from maskattn_jax.kernels import KERNELS

Array = Any

__all__ = ["attention", "choose", "explain"]


def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Any = None,
    *,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Any = None,
    dropout_broadcast: tuple[str, ...] = (),
    empty_rows: str = "zero",
    kernel: str = "auto",
    precision: str = "highest",
    return_lse: bool = False,
) -> Any:
    """Masked multi-head attention: softmax(softcap(scale * q.k) + bias) v, over the keys that the mask allows.

    Args:
        query: [B, L, H, D], float64, float32, bfloat16 or float16 (float64 needs jax_enable_x64).
        key: [B, S, K, D], the same dtype; H must be divisible by K, and head h reads key/value head h // (H // K).
        value: [B, S, K, Dv], the same dtype.
        mask: a Mask, or a bool array that broadcasts to [B, H, L, S]; True = may attend. None allows everything.
        bias: added to the logits after softcap: a Bias, or a float array that broadcasts to [B, H, L, S]. -inf forbids,
            as a mask does.
        scale: multiplies query times key (default 1 / sqrt(D)).
        softcap: c > 0 replaces a logit x by c * tanh(x / c).
        sinks: [H], one more logit per head, in the softmax's denominator only.
        dropout_rate: the probability, in [0, 1), that a weight is dropped after the softmax. Weights are multiplied by
            keep / (1 - dropout_rate); the log-sum-exp does not change.
        dropout_key: which weights are dropped, needed where dropout_rate is above 0: a seed in [0, 2**31),
            two uint32 words, or a `jax.random.key`. The same key drops the
            same weights in both frameworks, with every kernel.
        dropout_broadcast: the axes, of "batch" and "heads", that share one draw. () draws for every weight, as PyTorch
            does; ("batch", "heads") is the default of Flax.
        empty_rows: what a row gives that may attend to nothing and has no sink. "zero": output +0, log-sum-exp -inf, no
            gradient. "nan": output NaN. "mean": the average of all values. "error": raises; where the data of mask or
            bias are traced it cannot be checked, and that is what the error says.
        kernel: "reference", "exact", "blockwise", "fused", or "auto", which chooses (see `explain`). A kernel named
            here runs, or raises with every reason why it cannot; another never takes its place.
        precision: "highest", "high" or "default", the `jax.lax.Precision` of the products (the CPU's are always full).
        return_lse: also return the log-sum-exp of each row.

    Returns:
        The output [B, L, H, Dv] in the dtype of the inputs, or (output, lse) with lse [B, L, H] in float64 for float64
        inputs and float32 otherwise.

    Raises:
        TypeError, ValueError: one error that lists everything wrong with the arguments.
    """
    arguments, options = _prepared(
        query,
        key,
        value,
        mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        dropout_broadcast=dropout_broadcast,
        empty_rows=empty_rows,
        kernel=kernel,
        precision=precision,
        return_lse=return_lse,
    )
    name, _ = choose(kernel, *arguments, return_lse=return_lse, **options)
    output, lse = KERNELS[name].attention(*arguments, **options)
    return (output, lse) if return_lse else output


def explain(query: Array, key: Array, value: Array, mask: Any = None, **keywords: Any) -> tuple[str, str]:
    """Which kernel `attention` would run for these arguments, and why: ("blockwise", "...").

    Raises:
        TypeError, ValueError: as `attention`; nothing is computed.
    """
    given = {**_defaults(), **keywords}
    arguments, options = _prepared(query, key, value, mask, **given)
    return choose(given["kernel"], *arguments, return_lse=given["return_lse"], **options)


def choose(kernel: str, *arguments: Any, return_lse: bool = False, **options: Any) -> tuple[str, str]:
    """The kernel that runs a call, and why: `arguments` and `options` are those of the kernels.

    Raises:
        KernelCannot: a ValueError: a kernel asked for by name cannot run the call; lists every reason.
    """
    if kernel == "auto":
        return auto.choose(*arguments, return_lse=return_lse, **options)
    reasons = KERNELS[kernel].unsupported(*arguments, **options, return_lse=return_lse)
    if reasons:
        raise KernelCannot(kernel, reasons)
    return kernel, "it was asked for by name"


def _prepared(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    *,
    bias: Any,
    scale: float | None,
    softcap: float | None,
    sinks: Array | None,
    dropout_rate: float,
    dropout_key: Any,
    dropout_broadcast: tuple[str, ...],
    empty_rows: str,
    kernel: str,
    precision: str,
    return_lse: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and options of a kernel, checked and bound."""
    _check_types(query=query, key=key, value=value, sinks=sinks, mask=mask, bias=bias, dropout_key=dropout_key)
    arrays = {"query": query, "key": key, "value": value, "sinks": sinks, "mask": mask, "bias": bias}
    objects = {name: x for name, x in arrays.items() if isinstance(x, (masks.Mask, biases.Bias))}
    arrays = {name: x for name, x in arrays.items() if x is not None and name not in objects}
    check_attention(
        {name: tuple(x.shape) for name, x in arrays.items()},
        {name: _dtype_name(x) for name, x in arrays.items()},
        objects=list(objects.values()),
        scale=scale,
        softcap=softcap,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        dropout_broadcast=dropout_broadcast,
        empty_rows=empty_rows,
        precision=precision,
        return_lse=return_lse,
        kernel=kernel,
        kernels=tuple(KERNELS),
    )
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    sinks = None if sinks is None else jnp.asarray(sinks)
    mask = masks.Dense(mask) if "mask" in arrays else mask
    bias = biases.DenseBias(bias) if "bias" in arrays else bias
    batch, q_len, heads, head_dim = query.shape
    if empty_rows == "error":
        if sinks is None:
            refuse_empty_rows(mask, bias, (batch, heads, q_len, key.shape[1]), _concrete)
        empty_rows = "zero"
    mask = None if mask is None else lower.bind(mask)
    bias = None if bias is None else lower.bind(bias)
    arguments = (query, key, value, mask, bias, sinks)
    dropout = None
    if dropout_rate:
        dropout = Dropout(float(dropout_rate), rng.words(dropout_key), dropout_broadcast)
    options = {
        "scale": 1.0 / math.sqrt(head_dim) if scale is None else float(scale),
        "softcap": None if softcap is None else float(softcap),
        "dropout": dropout,
        "empty_rows": empty_rows,
        "precision": precision,
    }
    return arguments, options


@functools.cache
def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(attention).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _check_types(*, mask: Any, bias: Any, dropout_key: Any, **given: Any) -> None:
    problems = Problems("attention")
    for name, x in given.items():
        if x is None and name == "sinks":
            continue
        if not _is_array(x):
            problems.type(f"{name} must be a JAX or NumPy array, got {type(x).__name__}")
        elif x.dtype == np.float64 and not jax.config.jax_enable_x64:
            problems.value(f"{name} is float64, which JAX holds only where jax_enable_x64 is on")
    if mask is not None and not isinstance(mask, masks.Mask) and not _is_array(mask):
        problems.type(f"mask must be a Mask or a bool array (True = may attend), got {type(mask).__name__}")
    if bias is not None and not isinstance(bias, biases.Bias) and not _is_array(bias):
        problems.type(f"bias must be a Bias or a float array, got {type(bias).__name__}")
    if hasattr(dropout_key, "dtype") and not isinstance(dropout_key, np.generic) and not _is_array(dropout_key):
        wanted = "a seed, two uint32 words of JAX or NumPy, or a jax.random.key"
        problems.type(f"dropout_key must be {wanted}, got {type(dropout_key).__name__}")
    problems.raise_if_any()


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def _dtype_name(x: Any) -> str:
    return str(x.dtype)


def _concrete(x: Any) -> Any:
    """The data of a mask or bias as NumPy, or None where they are traced."""
    x = jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)
