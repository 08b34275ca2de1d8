"""The rules of the exact arithmetic on JAX arrays: one function with its transpose, for them all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.numerics.exact.layer import Layer
from maskattn.numerics.exact.rule import Arrays, Options, Rule
from maskattn_jax._linear import NoForwardMode, linear as differentiated, no_second_derivative
from maskattn_jax._scope import own_modes
from maskattn_jax.exact_ops import OPS


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def _function(rule: Rule, arrays: Arrays, options: Options) -> Array:
    return _function_jit(rule, arrays, options)


@partial(jax.jit, static_argnums=(0, 2))
def _function_jit(rule: Rule, arrays: Arrays, options: Options) -> Array:
    with jax.enable_x64(True):
        output: Array = rule.forward(OPS, arrays, options)
        return output


@_function.defjvp
@own_modes
def _(rule: Rule, options: Options, primals: tuple[Arrays], tangents: tuple[Arrays]) -> tuple[Array, Array]:
    (arrays,), (given,) = primals, tangents
    output = _function(rule, arrays, options)
    return output, differentiated(_OfRule("exact", rule, options), arrays, given[: rule.differentiable], output)


@dataclass(frozen=True)
class _OfRule(NoForwardMode):
    rule: Rule
    options: Options

    def transpose(self, arrays: Arrays, d_out: Array) -> Arrays:
        return _gradients(self.rule, arrays, d_out, self.options)


@partial(jax.custom_jvp, nondiff_argnums=(0, 3))
def _gradients(rule: Rule, arrays: Arrays, d_out: Array, options: Options) -> Arrays:
    return _gradients_jit(rule, arrays, d_out, options)


@partial(jax.jit, static_argnums=(0, 3))
def _gradients_jit(rule: Rule, arrays: Arrays, d_out: Array, options: Options) -> Arrays:
    with jax.enable_x64(True):
        return rule.backward(OPS, arrays, d_out, options)


_gradients.defjvp(partial(no_second_derivative, "exact"))


@own_modes
def apply(rule: Rule, arrays: Arrays, options: Options) -> Array:
    """A rule's function of arrays, differentiable once, in reverse mode."""
    return _function(rule, arrays, options)


#: All functions of `maskattn.numerics.exact.layer.Layer` on arrays of JAX.
EXACT: Layer[Array] = Layer(apply)


@jax.custom_jvp
def _fork(x: Array) -> tuple[Array, Array]:
    return x, x


@_fork.defjvp
@own_modes
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    outputs = _fork(*primals)
    return outputs, differentiated(_OfFork(), (), tangents[0], outputs)


@dataclass(frozen=True)
class _OfFork:
    def forward(self, residuals: Any, tangent: Array) -> tuple[Array, Array]:
        return tangent, tangent

    def transpose(self, residuals: Any, cotangents: tuple[Array, Array]) -> Array:
        return EXACT.merge(*cotangents)


@own_modes
def fork(x: Array) -> tuple[Array, Array]:
    """x twice, so that each of two readings has its own: their gradients are added exactly, and rounded once."""
    return _fork(x)


@own_modes
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight + bias`` rounded once: x [..., in], weight [in, out], bias [out] or None -> [..., out] in x's
    dtype.
    """
    weight = weight.astype(x.dtype)
    bias = None if bias is None else bias.astype(x.dtype)
    flat = EXACT.linear(jnp.reshape(x, (-1, x.shape[-1])), weight, bias)
    return jnp.reshape(flat, (*x.shape[:-1], weight.shape[1]))
