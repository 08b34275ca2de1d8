"""The exact kernel: the arithmetic of ``maskattn.numerics.exact`` on JAX arrays, and its gradients.

The same bits as NumPy and PyTorch, forward and backward, under jit, vmap and scan and without them, with x64 on or
off. It has first derivatives in reverse mode; ``reference`` has all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import Array

from maskattn.attention import Call
from maskattn.numerics.exact import Arrays, Options, attend
from maskattn.numerics.exact.drop import drop as _exact_drop
from maskattn_jax import lower
from maskattn_jax._linear import NoForwardMode, linear as differentiated, no_second_derivative
from maskattn_jax._mesh import automatic_inside
from maskattn_jax._scope import own_modes
from maskattn_jax.dropout import dense
from maskattn_jax.exact_ops import OPS
from maskattn_jax.kernels.exact.layer import LAYER as LAYER
from maskattn_jax.kernels.exact.rules import linear as linear


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
