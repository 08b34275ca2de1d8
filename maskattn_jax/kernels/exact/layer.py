"""The exact functions of a layer on JAX arrays: each rule of the core as one function with its transpose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
from jax import Array

from maskattn.numerics.exact.layer import Layer
from maskattn.numerics.exact.rule import Arrays, Options, Rule
from maskattn_jax._linear import NoForwardMode, linear, no_second_derivative
from maskattn_jax._scope import own_modes
from maskattn_jax.exact_ops import OPS

__all__ = ["LAYER"]


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
    return output, linear(_OfRule("exact", rule, options), arrays, given[: rule.differentiable], output)


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
def _apply(rule: Rule, arrays: Arrays, options: Options) -> Array:
    return _function(rule, arrays, options)


#: The functions of `maskattn.numerics.exact.Layer` on JAX arrays: differentiable once, in reverse mode.
LAYER: Layer[Array] = Layer(_apply)
