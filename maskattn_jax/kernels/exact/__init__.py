"""The exact kernel: the arithmetic of ``maskattn.numerics.exact`` on JAX arrays, and its gradients.

The same bits as NumPy and PyTorch, forward and backward, under jit, vmap and scan and without them, with x64 on or
off. Second derivatives are not defined: ``reference`` has them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.attention import Call
from maskattn.numerics.exact import Arrays, Options, attend, project
from maskattn.numerics.exact.drop import drop as _exact_drop
from maskattn_jax import lower
from maskattn_jax.dropout import dense
from maskattn_jax.exact_ops import OPS


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend exactly: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    `precision` is met by every result.
    """
    mask, bias = (lower.opaque(node, call.query, call.key, call.value) for node in (call.mask, call.bias))
    allowed, added = lower.allowed(mask, *call.sizes), lower.bias(bias, *call.sizes)
    dropout = call.dropout
    keep, kept = (None, 1.0) if dropout is None else (dense(dropout, call.sizes), 1.0 - dropout.rate)
    options = Options(call.scale, call.softcap, call.empty_rows, kept)
    return _attention(Arrays(call.query, call.key, call.value, allowed, added, call.sinks, keep), options)


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: it runs every call."""
    return []


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight + bias`` rounded once: x [..., in], weight [in, out], bias [out] or None -> [..., out] in x's
    dtype.
    """
    weight = weight.astype(x.dtype)
    bias = None if bias is None else bias.astype(x.dtype)
    flat = _linear(jnp.reshape(x, (-1, x.shape[-1])), weight, bias)
    return jnp.reshape(flat, (*x.shape[:-1], weight.shape[1]))


def drop(x: Array, keep: Array, rate: float) -> Array:
    """``x * keep / (1 - rate)`` rounded once; ``keep`` (bool) has the shape of ``x``."""
    return _drop(x, keep, 1.0 - rate)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(arrays: Arrays, options: Options) -> tuple[Array, Array]:
    return _attention_jit(arrays, options)


@partial(jax.jit, static_argnums=1)
def _attention_jit(arrays: Arrays, options: Options) -> tuple[Array, Array]:
    with jax.enable_x64(True):
        return attend.forward(OPS, arrays, options)


def _attention_forward(arrays: Arrays, options: Options) -> tuple[tuple[Array, Array], Arrays]:
    return _attention(arrays, options), arrays


def _attention_backward(options: Options, arrays: Arrays, cotangents: tuple[Array, Array]) -> tuple[Arrays]:
    d_query, d_key, d_value, d_bias, d_sinks = _attention_gradients(arrays, *cotangents, options)
    return (Arrays(d_query, d_key, d_value, None, d_bias, d_sinks, None),)


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention_gradients(arrays: Arrays, d_output: Array, d_lse: Array, options: Options) -> tuple[Any, ...]:
    return _attention_gradients_jit(arrays, d_output, d_lse, options)


@partial(jax.jit, static_argnums=3)
def _attention_gradients_jit(arrays: Arrays, d_output: Array, d_lse: Array, options: Options) -> tuple[Any, ...]:
    with jax.enable_x64(True):
        return attend.backward(OPS, arrays, d_output, d_lse, options)


@partial(jax.custom_vjp)
def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    return _linear_jit(x, weight, bias)


@jax.jit
def _linear_jit(x: Array, weight: Array, bias: Array | None) -> Array:
    with jax.enable_x64(True):
        return project.forward(OPS, x, weight, bias)


def _linear_forward(x: Array, weight: Array, bias: Array | None) -> tuple[Array, Any]:
    return _linear(x, weight, bias), (x, weight, bias is not None)


def _linear_backward(saved: Any, d_out: Array) -> tuple[Array, Array, Array | None]:
    x, weight, has_bias = saved
    d_x, d_weight, d_bias = _linear_gradients(x, weight, d_out)
    return d_x, d_weight, d_bias if has_bias else None


_linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def _linear_gradients(x: Array, weight: Array, d_out: Array) -> tuple[Array, Array, Array]:
    return _linear_gradients_jit(x, weight, d_out)


@jax.jit
def _linear_gradients_jit(x: Array, weight: Array, d_out: Array) -> tuple[Array, Array, Array]:
    with jax.enable_x64(True):
        return project.backward(OPS, x, weight, d_out)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: Array, keep: Array, kept: float) -> Array:
    return _drop_jit(x, keep, kept)


@partial(jax.jit, static_argnums=2)
def _drop_jit(x: Array, keep: Array, kept: float) -> Array:
    with jax.enable_x64(True):
        return _exact_drop(OPS, x, keep, kept)


def _drop_forward(x: Array, keep: Array, kept: float) -> tuple[Array, Array]:
    return _drop(x, keep, kept), keep


def _drop_backward(kept: float, keep: Array, d_out: Array) -> tuple[Array, None]:
    return _drop(d_out, keep, kept), None


_drop.defvjp(_drop_forward, _drop_backward)


def _no_second_derivative(*arguments: object) -> NoReturn:
    raise NotImplementedError('kernel="exact" has no second derivatives; kernel="reference" has')


_attention_gradients.defvjp(_no_second_derivative, _no_second_derivative)
_linear_gradients.defvjp(_no_second_derivative, _no_second_derivative)
