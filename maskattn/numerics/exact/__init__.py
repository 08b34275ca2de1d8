"""Arithmetic that gives the same bits on NumPy, PyTorch and XLA, and attention written in it.

The functions here are the NumPy ones. The twins run the same text (``attend.py``, ``project.py``) on their own
arrays, as ``kernel="exact"``.

Results of float32 and narrower inputs are the true values rounded once (to 0.51 ulp; what cancels below 2^-26 of the
terms' size is right to that size). float64 results carry some 53 bits of the terms' size. float64 inputs below 2^-250
count as 0 and softmax weights below 2^-298 of the largest as 0; products that overflow float64 give NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn._call import Call
from maskattn.numerics import dropout
from maskattn.numerics.exact import attend, drop as _drop
from maskattn.numerics.exact._ops import FORMATS, NumpyOps, Ops
from maskattn.numerics.exact.attend import Arrays, Options
from maskattn.numerics.exact.layer import Layer
from maskattn.numerics.exact.rule import Arrays as Given, Options as Static, Rule
from maskattn.typing import NumPyArray as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "FORMATS",
    "LAYER",
    "Arrays",
    "NumpyOps",
    "Options",
    "Ops",
    "attention",
    "attention_backward",
    "drop",
    "gradients",
    "linear",
    "linear_backward",
]

_OPS = NumpyOps()


def attention(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K Dv"],
    allowed: Bool[Array, "#B #H #L #S"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "B L H Dv"], Float[Array, "B L H"]]:
    """Exact attention in NumPy: ``query`` [B, L, H, D], ``key`` [B, S, K, D], ``value`` [B, S, K, Dv] of one floating
    type.

    ``allowed`` (bool, True = may attend) and ``bias`` broadcast to [B, H, L, S], ``sinks`` is [H]. Returns the output
    [B, L, H, Dv] in the inputs' type and the log-sum-exp [B, L, H] in float32 (float64 for float64 inputs).
    ``dropout_key``: a seed or uint32 [2]; the other options as in the twins' ``attention``.
    """
    with np.errstate(all="ignore"):
        return attend.forward(_OPS, *_terms(Call(query, key, value, allowed, **options)))


def attention_backward(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K Dv"],
    allowed: Bool[Array, "#B #H #L #S"] | None,
    d_output: Float[Array, "B L H Dv"],
    d_lse: Float[Array, "B L H"] | None = None,
    **options: Any,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """Gradients of ``sum(output * d_output) + sum(lse * d_lse)`` for query, key, value, bias and sinks, in their
    shapes and dtypes. ``allowed``: True = may attend. Arguments as in ``attention``.
    """
    call = Call(query, key, value, allowed, **options)
    arrays, terms = _terms(call)
    with np.errstate(all="ignore"):
        dq, dk, dv, d_bias, d_sinks = attend.backward(_OPS, arrays, d_output, d_lse, terms)
    return dq, dk, dv, None if d_bias is None else d_bias.reshape(np.shape(call.bias)), d_sinks


def _terms(call: Call[Array]) -> tuple[Arrays, Options]:
    """A call with NumPy arrays in the terms of ``attend``."""
    scale, rate, keep = call.scale, call.dropout_rate, None
    if rate:
        keep = dropout.dense(rate, call.dropout_key, call.sizes, call.dropout_broadcast)
    scale = 1 / math.sqrt(call.query.shape[-1]) if scale is None else float(scale)
    arrays = Arrays(call.query, call.key, call.value, _rank4(call.mask), _rank4(call.bias), call.sinks, keep)
    return arrays, Options(scale, call.softcap, call.empty_rows, 1.0 - rate)


def _rank4(x: Array | None) -> Array | None:
    if x is None:
        return None
    x = np.asarray(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _apply(rule: Rule, arrays: Given, options: Static) -> Array:
    with np.errstate(all="ignore"):
        result: Array = rule.forward(_OPS, arrays, options)
    return result


#: ``LAYER.norm(x, scale, bias, kind="rms", eps=1e-6)`` and the others in NumPy.
LAYER: Layer[Array] = Layer(_apply)


def gradients(d_out: Array) -> Layer[tuple[Array | None, ...]]:
    """The functions of ``LAYER``, but each gives the gradients of ``sum(result * d_out)`` for its arrays, in their
    shapes and dtypes, None for None; ``d_out`` has the shape and the dtype of ``x``.
    """

    def apply(rule: Rule, arrays: Given, options: Static) -> tuple[Array | None, ...]:
        with np.errstate(all="ignore"):
            return rule.backward(_OPS, arrays, d_out, options)

    return Layer(apply)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight + bias``, rounded once: ``x`` [..., in], ``weight`` [in, out], ``bias`` [out], of one floating
    type.
    """
    flat = LAYER.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return flat.reshape(*x.shape[:-1], weight.shape[1])


def linear_backward(x: Array, weight: Array, d_out: Array) -> tuple[Array, Array, Array]:
    """Gradients of x, weight and bias for ``d_out`` [..., out], all of one dtype. Arguments as in ``linear``."""
    rows, flat_d_out = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, weight.shape[1])
    d_x, d_weight, d_bias = gradients(flat_d_out).linear(rows, weight, np.zeros_like(weight, shape=weight.shape[1]))
    assert d_x is not None and d_weight is not None and d_bias is not None
    return d_x.reshape(x.shape), d_weight, d_bias


def drop(x: Array, keep: Array, rate: float) -> Array:
    """``x * keep / (1 - rate)``, rounded once; ``keep``: bool, True = kept, the shape of ``x``. Also its gradient."""
    with np.errstate(all="ignore"):
        return _drop.drop(_OPS, x, keep, 1.0 - rate)
