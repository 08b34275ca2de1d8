"""The exact kernel: the arithmetic of ``maskattn.numerics.exact`` on JAX arrays, and its gradients.

The same bits as NumPy and PyTorch, forward and backward, under jit, vmap and scan and without them, with x64 on or
off. It has first derivatives in reverse mode; ``reference`` has all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.attention import Call
from maskattn.numerics.exact import Arrays, Options, attend, project
from maskattn.numerics.exact.drop import drop as _exact_drop
from maskattn_jax import lower
from maskattn_jax._linear import NoForwardMode, linear as differentiated, no_second_derivative
from maskattn_jax._mesh import automatic_inside
from maskattn_jax._scope import own_modes
from maskattn_jax.dropout import dense
from maskattn_jax.exact_ops import OPS
from maskattn_jax.kernels.exact.layer import LAYER as LAYER


@automatic_inside
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


@own_modes
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight + bias`` rounded once: x [..., in], weight [in, out], bias [out] or None -> [..., out] in x's
    dtype.
    """
    weight = weight.astype(x.dtype)
    bias = None if bias is None else bias.astype(x.dtype)
    flat = _linear(jnp.reshape(x, (-1, x.shape[-1])), weight, bias)
    return jnp.reshape(flat, (*x.shape[:-1], weight.shape[1]))


@own_modes
def drop(x: Array, keep: Array, rate: float) -> Array:
    """``x * keep / (1 - rate)`` rounded once; ``keep`` (bool) has the shape of ``x``."""
    return _drop(x, keep, 1.0 - rate)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _attention(arrays: Arrays, options: Options) -> tuple[Array, Array]:
    return _attention_jit(arrays, options)


@partial(jax.jit, static_argnums=1)
def _attention_jit(arrays: Arrays, options: Options) -> tuple[Array, Array]:
    with jax.enable_x64(True):
        return attend.forward(OPS, arrays, options)


@_attention.defjvp
@own_modes
def _(options: Options, primals: tuple[Arrays], tangents: tuple[Arrays]) -> tuple[Any, Any]:
    (arrays,), (given,) = primals, tangents
    results = _attention(arrays, options)
    d_arrays = (given.query, given.key, given.value, given.bias, given.sinks)
    return results, differentiated(_OfAttention("exact", options), arrays, d_arrays, results)


@dataclass(frozen=True)
class _OfAttention(NoForwardMode):
    options: Options

    def transpose(self, arrays: Arrays, cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        return _attention_gradients(arrays, *cotangents, self.options)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _attention_gradients(arrays: Arrays, d_output: Array, d_lse: Array, options: Options) -> tuple[Any, ...]:
    return _attention_gradients_jit(arrays, d_output, d_lse, options)


@partial(jax.jit, static_argnums=3)
def _attention_gradients_jit(arrays: Arrays, d_output: Array, d_lse: Array, options: Options) -> tuple[Any, ...]:
    with jax.enable_x64(True):
        return attend.backward(OPS, arrays, d_output, d_lse, options)


@jax.custom_jvp
def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    return _linear_jit(x, weight, bias)


@jax.jit
def _linear_jit(x: Array, weight: Array, bias: Array | None) -> Array:
    with jax.enable_x64(True):
        return project.forward(OPS, x, weight, bias)


@_linear.defjvp
@own_modes
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    output = _linear(*primals)
    return output, differentiated(_OfLinear("exact", primals[2] is not None), primals[:2], tangents, output)


@dataclass(frozen=True)
class _OfLinear(NoForwardMode):
    has_bias: bool

    def transpose(self, saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array, Array | None]:
        d_x, d_weight, d_bias = _linear_gradients(*saved, d_out)
        return d_x, d_weight, d_bias if self.has_bias else None


@jax.custom_jvp
def _linear_gradients(x: Array, weight: Array, d_out: Array) -> tuple[Array, Array, Array]:
    return _linear_gradients_jit(x, weight, d_out)


@jax.jit
def _linear_gradients_jit(x: Array, weight: Array, d_out: Array) -> tuple[Array, Array, Array]:
    with jax.enable_x64(True):
        return project.backward(OPS, x, weight, d_out)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _drop(x: Array, keep: Array, kept: float) -> Array:
    return _drop_jit(x, keep, kept)


@partial(jax.jit, static_argnums=2)
def _drop_jit(x: Array, keep: Array, kept: float) -> Array:
    with jax.enable_x64(True):
        return _exact_drop(OPS, x, keep, kept)


@_drop.defjvp
@own_modes
def _(kept: float, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    output = _drop(*primals, kept)
    return output, differentiated(_OfDrop(kept), primals[1], tangents[0], output)


@dataclass(frozen=True)
class _OfDrop:
    """Dropout is linear, and its own transpose."""

    kept: float

    def forward(self, keep: Array, d_x: Array) -> Array:
        return _drop(d_x, keep, self.kept)

    def transpose(self, keep: Array, d_out: Array) -> Array:
        return _drop(d_out, keep, self.kept)


_attention_gradients.defjvp(partial(no_second_derivative, "exact"))
_linear_gradients.defjvp(partial(no_second_derivative, "exact"))
