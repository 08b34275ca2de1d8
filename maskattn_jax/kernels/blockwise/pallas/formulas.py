"""Whether a mask or bias that is not of this library can be part of a GPU's kernel: its formula is traced, and read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from maskattn._pairs import restrict
from maskattn.biases import ALiBi, Bias, DenseBias, TableBias
from maskattn.masks import Mask
from maskattn_jax.kernels.blockwise.pallas.operands import Loaded

#: The sums of a table's rows are kept in registers: of more rows it is left to the loops of XLA.
MOST_ROWS = 4096
#: What Triton computes entry by entry (Pallas's lowering of both JAX versions), and what only calls that.
_ELEMENTWISE = frozenset(
    (
        "abs add and broadcast_in_dim ceil clamp closed_call convert_element_type cos custom_jvp_call div eq exp exp2 "
        "expm1 floor ge gt integer_pow is_finite jit le log log1p lt max min mul ne neg not or pjit pow rem rsqrt "
        "select_n shift_left shift_right_arithmetic shift_right_logical sign sin sqrt square stop_gradient sub tan "
        "tanh xor"
    ).split()
)


def obstacle(node: Mask | Bias) -> str | None:
    """What keeps the formulas of an expression out of a kernel, in words; None where nothing does."""
    if all(type(part).__module__.startswith("maskattn.") for part in _parts(node)):
        return None  # those of the library are tested
    loaded = node.map_data(_unread)
    q, k = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((16, 1), (1, 16)))
    scalar = jax.ShapeDtypeStruct((), jnp.int32)

    def formula(*places: Any) -> Any:
        places = restrict(loaded, *places)
        return loaded.allowed(*places) if isinstance(loaded, Mask) else loaded.values(*places)

    try:
        traced = jax.make_jaxpr(formula)(scalar, scalar, q, k)
    except Exception as error:  # whatever it does with its data that a kernel cannot
        return f"its formula does not run on tiles: {str(error).splitlines()[0] if str(error) else error!r}"
    if any(getattr(x, "ndim", 0) for x in traced.consts):
        return "its formula holds an array of its own: give it as data()"
    foreign = sorted(set(_operations(traced.jaxpr)) - _ELEMENTWISE)
    return f"its formula does more than arithmetic on entries: {', '.join(foreign)}" if foreign else None


def has_gradient(bias: Bias) -> bool:
    """Whether there is a kernel for the gradient of a bias's float arrays."""
    floats = [x for x in jax.tree.leaves(bias) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not floats:
        return True
    if isinstance(bias, TableBias):
        return len(floats) == 1 and bias.table.shape[0] <= MOST_ROWS
    return isinstance(bias, (ALiBi, DenseBias))


def _parts(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children():
        yield from _parts(child)


def _operations(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from _operations(inner.jaxpr)


def _unread(x: Any) -> Any:
    return Loaded(_Anywhere(x.dtype), x.shape, x.dtype, jnp.int32(0)) if x.shape else jnp.zeros((), x.dtype)


class _Anywhere:
    """A reference whose entries are not looked at."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def __getitem__(self, index: Any) -> Any:
        return jnp.zeros(jnp.shape(index), self.dtype)
