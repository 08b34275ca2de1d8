"""A call of the blockwise kernel over automatic mesh axes: XLA divides it, and each device makes its own tiles.

Query, key, value, sinks and the data of a mask stay divided as they are along batch and heads, and queries along their
length; keys and values are gathered along theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskattn.masks import Mask
from maskattn_jax._partition import Axes, Made, Origin, divide
from maskattn_jax.kernels.blockwise.gpu import Kernels
from maskattn_jax.kernels.blockwise.own import axes_of, axes_of_floats
from maskattn_jax.kernels.blockwise.steps import cheapest
from maskattn_jax.kernels.blockwise.tiled_call import Conditions, Options
from maskattn_jax.kernels.blockwise.tiling import CallTiling

_QUERY, _KEY, _VALUE = ("b", "l", "h", "-"), ("b", "s", "c", "-"), ("b", "s", "c", "-")
_OUTPUT, _LSE = ("b", "l", "h", "-"), ("b", "l", "h")


class Known:
    """A mask whose data can be read now, as a constant of what is compiled."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask.map_data(np.asarray)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self.mask == other.mask

    def __hash__(self) -> int:
        return hash(tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(self.mask)))


@dataclass(frozen=True)
class Undivided:
    """What stands for the tiles of a call until its parts are known.

    Attributes:
        whole: (B, H, L, S) on all devices.
        blocks: as in `attention`.
        known: its mask, where the data can be read now: the steps are then made from it.
        kernels: those of a GPU, which make other tiles, or None.
        parts: as in `CallTiling`, where they are not those that are worth most.
    """

    whole: tuple[int, int, int, int]
    blocks: tuple[int, int] | None
    known: Known | None
    kernels: Kernels | None
    parts: tuple[int, int] | None = None

    def tiled(self, query: Array, key: Array, conditions: Conditions) -> tuple[CallTiling, Conditions]:
        """The tiles of one device's part, and its conditions with its steps."""
        if self.kernels is not None:
            tiling, sizes = self.kernels.tiled(conditions.mask, query, key, self.whole)
            return tiling, conditions._replace(steps=sizes)
        mask = conditions.mask if self.known is None else self.known.mask
        tiling, steps = cheapest(mask, query, key, self.whole, conditions.origin, self.blocks)
        tiling = tiling if self.parts is None else replace(tiling, parts=self.parts)
        return tiling, conditions._replace(steps=steps)


def forward(
    body: Callable[..., Any], undivided: Undivided, options: Options, *arrays: Any
) -> tuple[Array, Array, Array | None]:
    """`body`, which is `_forward`, of a call that is not tiled yet."""
    query, _, value, *_, conditions = arrays
    dtype = jnp.float64 if query.dtype == jnp.float64 else jnp.float32
    lse = Made(_LSE, query.shape[:3], dtype)
    of_output = dtype if undivided.kernels is None else query.dtype
    output, has_bias = Made(_OUTPUT, (*query.shape[:3], value.shape[-1]), of_output), conditions.bias is not None
    results = _divided(body, undivided, options, arrays, (), [output, lse, *([lse] if has_bias else [])])
    return results[0], results[1], (results[2] if has_bias else None)


def gradients(
    body: Callable[..., Any], undivided: Undivided, options: Options, arrays: Any, *rest: Array | None
) -> tuple[Any, ...]:
    """`body`, which is `_gradients_jit`, of a call that is not tiled yet."""
    *like, conditions = arrays
    leaves, structure = jax.tree.flatten(tuple(like))
    axes = [_QUERY, _KEY, _VALUE, *axes_of_floats(conditions.bias), ("h",)]
    made = [Made(names, x.shape, x.dtype) for names, x in zip(axes, leaves, strict=False)]
    found: tuple[Any, ...] = jax.tree.unflatten(structure, _divided(body, undivided, options, arrays, rest, made))
    return found


def _divided(
    body: Callable[..., Any], undivided: Undivided, options: Options, arrays: Any, rest: Any, made: list[Made]
) -> list[Array]:
    query, key, value, floats, sinks, conditions = arrays
    mask, bias, dropout = conditions[:3]
    leaves, bias_structure = jax.tree.flatten(bias)
    floating = tuple(bool(jnp.issubdtype(leaf.dtype, jnp.floating)) for leaf in leaves)
    whole = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if not is_float]
    given, structure = jax.tree.flatten((query, key, value, floats, sinks, mask, whole, dropout, rest))
    axes = [
        *(_QUERY, _KEY, _VALUE, *axes_of_floats(bias), *([] if sinks is None else [("h",)])),
        *axes_of(mask, undivided.whole[0]),
        *(("-",) * x.ndim for x in (*whole, *jax.tree.leaves(dropout))),
        *((_LSE if x.ndim == 3 else _OUTPUT) for x in jax.tree.leaves(rest)),
    ]
    part = _Part(body, undivided, options, structure, (bias_structure, floating), tuple(axes), tuple(made))
    return divide(part, given)


@dataclass(frozen=True)
class _Part:
    """A pass over one device's part of a call, as a function of arrays."""

    body: Callable[..., Any]
    undivided: Undivided
    options: Options
    structure: Any
    bias: tuple[Any, tuple[bool, ...]]  # its structure, and which of its arrays are differentiable
    given: tuple[Axes, ...]
    made: tuple[Made, ...]

    def compute(self, origin: Origin, arrays: Sequence[Array]) -> list[Array]:
        query, key, value, floats, sinks, mask, whole, dropout, rest = jax.tree.unflatten(self.structure, arrays)
        of_bias = {True: iter(floats), False: iter(whole)}
        bias = jax.tree.unflatten(self.bias[0], [next(of_bias[is_float]) for is_float in self.bias[1]])
        empty: Any = None
        tiling, conditions = self.undivided.tiled(query, key, Conditions(mask, bias, dropout, empty, origin))
        given = query, key, value, floats, sinks, conditions
        results = self.body(tiling, self.options, given, *rest) if rest else self.body(tiling, self.options, *given)
        return jax.tree.leaves(results)
