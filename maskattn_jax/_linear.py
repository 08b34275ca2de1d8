"""A linear function with a transpose of its own, as one operation: what derivatives of both modes are made of.

JAX gives a function either a rule for the forward mode (`jax.custom_jvp`), whose transpose JAX then derives, or one for
the reverse mode (`jax.custom_vjp`), and then no forward mode. A `jax.custom_jvp` whose tangents come from `linear` has
both: `forward` is what the forward mode computes, `transpose` what the reverse mode does. Each may be differentiated
again if it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import ad, batching, mlir

from maskattn_jax._scope import own_modes
from maskattn_jax._varying import manual_axes, vary

__all__ = ["Linear", "NoForwardMode", "linear", "no_second_derivative"]


class Linear(Protocol):
    """A linear function and its transpose, hashable: it is part of what is compiled."""

    def forward(self, residuals: Any, tangents: Any) -> Any:
        """What is linear in `tangents`."""

    def transpose(self, residuals: Any, cotangents: Any) -> Any:
        """Its transpose: a cotangent for each of `tangents`, in their structure."""


@dataclass(frozen=True)
class NoForwardMode:
    """Base of the rules of a kernel that has derivatives in reverse mode only."""

    kernel: str

    def forward(self, residuals: Any, tangents: Any) -> NoReturn:
        raise NotImplementedError(f'kernel="{self.kernel}" has no forward mode; kernel="reference" has')


def no_second_derivative(kernel: str, *arguments: object) -> NoReturn:
    """The rule of gradients that cannot be differentiated again."""
    raise NotImplementedError(f'kernel="{kernel}" has no second derivatives; kernel="reference" has')


def linear(rule: Linear, residuals: Any, tangents: Any, like: Any) -> Any:
    """`rule.forward(residuals, tangents)`, whose structure, shapes, dtypes are those of `like`."""
    # what varies over the axes of a shard_map decides about the rest: a cotangent varies as its tangent does
    residuals, tangents = vary((residuals, tangents), manual_axes((residuals, tangents)))
    flat_residuals, residual_tree = jax.tree.flatten(residuals)
    flat, tree = jax.tree.flatten(tangents)
    outputs, output_tree = jax.tree.flatten(like)
    flattened = _Flat(rule, residual_tree, tree, output_tree)
    avals = tuple(jax.typeof(x).to_tangent_aval() for x in outputs)
    results = linear_p.bind(*flat_residuals, *flat, rule=flattened, count=len(flat_residuals), avals=avals)
    return jax.tree.unflatten(output_tree, results)


@dataclass(frozen=True)
class _Flat:
    """A rule on lists of arrays."""

    rule: Linear
    residuals: Any
    tangents: Any
    outputs: Any

    @own_modes
    def forward(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        given = jax.tree.unflatten(self.residuals, residuals), jax.tree.unflatten(self.tangents, tangents)
        return jax.tree.leaves(self.rule.forward(*given))

    @own_modes
    def transpose(self, residuals: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        given = jax.tree.unflatten(self.residuals, residuals), jax.tree.unflatten(self.outputs, cotangents)
        return jax.tree.leaves(self.rule.transpose(*given))


@dataclass(frozen=True)
class _Mapped:
    """A rule under `jax.vmap`: tangents and outputs are mapped along their first axis, residuals along `axes`."""

    rule: Any
    axes: tuple[int | None, ...]

    def forward(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        return jax.vmap(self.rule.forward, (list(self.axes), 0))(list(residuals), list(tangents))

    def transpose(self, residuals: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        return jax.vmap(self.rule.transpose, (list(self.axes), 0))(list(residuals), list(cotangents))


linear_p = Primitive("maskattn_linear")
linear_p.multiple_results = True


@linear_p.def_abstract_eval
def _(*arrays: Any, rule: Any, count: int, avals: tuple[Any, ...]) -> list[Any]:
    return list(avals)


def _compute(*arrays: Array, rule: Any, count: int, avals: tuple[Any, ...]) -> list[Array]:
    return rule.forward(arrays[:count], arrays[count:])


linear_p.def_impl(jax.jit(_compute, static_argnames=("rule", "count", "avals")))
mlir.register_lowering(linear_p, mlir.lower_fun(_compute, multiple_results=True))


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], *, rule: Any, count: int, avals: Any) -> Any:
    bind = partial(linear_p.bind, rule=rule, count=count, avals=avals)
    moved = [n for n, x in enumerate(tangents) if not isinstance(x, ad.Zero)]
    if all(n >= count for n in moved):
        return bind(*primals), bind(*primals[:count], *map(ad.instantiate_zeros, tangents[count:]))

    def forward(*given: Array) -> list[Array]:
        arrays = list(primals)
        for n, x in zip(moved, given, strict=True):
            arrays[n] = x
        return rule.forward(arrays[:count], arrays[count:])

    return bind(*primals), jax.jvp(forward, [primals[n] for n in moved], [tangents[n] for n in moved])[1]


def _transpose(cotangents: Sequence[Any], *arrays: Any, rule: Any, count: int, avals: Any) -> list[Any]:
    results = rule.transpose(arrays[:count], [ad.instantiate_zeros(x) for x in cotangents])
    wanted = [ad.is_undefined_primal(x) for x in arrays[count:]]
    return [None] * count + [x if want else None for x, want in zip(results, wanted, strict=True)]


def _batch(arrays: Sequence[Array], dims: Sequence[int | None], *, rule: Any, count: int, avals: Any) -> Any:
    size = next(x.shape[dim] for x, dim in zip(arrays, dims, strict=True) if dim is not None)
    moved = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(arrays, dims, strict=True)]
    tangents = [
        jnp.broadcast_to(x, (size, *x.shape)) if dim is None else x
        for x, dim in zip(moved[count:], dims[count:], strict=True)
    ]
    axes = tuple(None if dim is None else 0 for dim in dims[:count])
    mapped = _Mapped(rule, axes)
    avals = tuple(unmapped_aval(size, 0, aval) for aval in avals)
    results = linear_p.bind(*moved[:count], *tangents, rule=mapped, count=count, avals=avals)
    return results, [0] * len(results)


ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
