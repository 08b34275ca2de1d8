"""Whether the kernels of `pallas/` compute a call: on a GPU, where they can, and only if it is compiled for one.

A program that was traced for a GPU may be compiled for a CPU after all (its arrays may lie there): it then holds the
loops, so that it is right. Only CUDA is meant: on AMD's GPUs these kernels were never tried.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.attention import Call
from maskattn.biases import DenseBias, TableBias
from maskattn.masks import BlockSparse, Dense, Mask, Segments
from maskattn_jax._platform import interpreted, platform
from maskattn_jax.kernels.blockwise.sizes import LEAST, WIDEST, Sizes, Widths, choose, power_of_two
from maskattn_jax.kernels.blockwise.steps import cheapest
from maskattn_jax.kernels.blockwise.tiling import CallTiling, divide

#: Entries of an array that are read at int32 indices.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Kernels:
    """What the sizes of a call's tiles depend on, besides its lengths; static. `documents`: see `choose`."""

    widths: Widths
    documents: bool
    blocks: tuple[int, int] | None
    interpret: bool

    def tiled(
        self, mask: Mask | None, query: Array, key: Array, whole: tuple[int, int, int, int]
    ) -> tuple[CallTiling, Sizes]:
        """The tiles of these parts of a call's arrays."""
        lengths = query.shape[1], key.shape[1]
        sizes = choose(lengths, self.widths, self.documents, self.blocks, self.interpret)
        return divide(mask, query, key, whole, (sizes.forward.q, sizes.forward.k)), sizes


def kernels_of(call: Call[Array]) -> Kernels | None:
    """The GPU's kernels for a call; None where the loops compute it."""
    if platform(call.query, call.key, call.value) != "gpu" or reasons(call):
        return None
    depth, v_depth = (max(LEAST, power_of_two(x.shape[-1])) for x in (call.query, call.value))
    documents = call.mask is not None and _has(call.mask, Segments)
    widths = Widths(depth, v_depth, call.query.dtype.itemsize, _explicit(call.mask) + _explicit(call.bias))
    return Kernels(widths, documents, call.blocks, interpreted())


def reasons(call: Call[Array]) -> list[str]:
    """Why the loops of XLA compute a call on a GPU, which takes many times as long; [] where the kernels do."""
    if not _has_triton():
        return ["this version of JAX has no Triton back end of Pallas"]
    found = []
    if call.query.dtype == jnp.float64:
        found.append("it computes in float32, and the inputs are float64")
    widest = max(call.query.shape[-1], call.value.shape[-1])
    if widest > WIDEST:
        found.append(f"it takes heads of at most {WIDEST} numbers, got {widest}")
    for node in (call.mask, call.bias):
        if node is None:
            continue
        if any(leaf.size > _MOST for leaf in jax.tree.leaves(node)):
            found.append(f"it reads arrays of at most 2**31 - 1 entries, got {node!r}")
        why = formulas().obstacle(node)
        if why is not None:
            found.append(f"{type(node).__name__}: {why}")
    if call.bias is not None and not formulas().has_gradient(call.bias):
        found.append(f"it has no gradient of {type(call.bias).__name__}")
    return found


@functools.cache
def _has_triton() -> bool:
    """Whether JAX can compile the kernels: 0.11 says that it will not for ever."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def formulas() -> Any:
    """Pallas is loaded where it is needed only: that takes a tenth of a second."""
    from maskattn_jax.kernels.blockwise.pallas import formulas

    return formulas


def _explicit(node: Any) -> int:
    """The bytes that are read for each pair of an expression."""
    if node is None:
        return 0
    foreign = not type(node).__module__.startswith("maskattn.")
    if foreign or isinstance(node, (Dense, BlockSparse, DenseBias, TableBias)):
        return sum(leaf.dtype.itemsize for leaf in jax.tree.leaves(node))
    return sum(map(_explicit, node.children()))


def _has(mask: Mask, kind: type[Mask]) -> bool:
    return isinstance(mask, kind) or any(_has(child, kind) for child in mask.children())


def forward(by_loops: Callable[..., Any], tiling: CallTiling, options: Any, *arrays: Any) -> Any:
    """The forward pass: `by_loops`, or the kernels where `kernels_of` chose them and the program is for CUDA."""
    conditions = arrays[-1]
    if not isinstance(conditions.steps, Sizes):
        return by_loops(tiling, options, *arrays)
    from maskattn_jax.kernels.blockwise.pallas import passes

    def loops(*arrays: Any) -> Any:
        output, lse, found = by_loops(*_of_loops(tiling, options, arrays))
        return output.astype(arrays[0].dtype), lse, found

    return _by_platform(conditions.steps, partial(passes.forward, tiling, options), loops, *arrays)


def gradients(
    by_loops: Callable[..., Any], tiling: CallTiling, options: Any, arrays: Any, *results: Array
) -> tuple[Any, ...]:
    """The gradients of query, key, value; those of the bias's float arrays, in a list; of the sinks, or None."""
    conditions = arrays[-1]
    if not isinstance(conditions.steps, Sizes):
        return by_loops(tiling, options, arrays, *results)
    from maskattn_jax.kernels.blockwise.pallas import passes

    def loops(arrays: Any, *results: Array) -> Any:
        again = _of_loops(tiling, options, arrays)
        return by_loops(*again[:2], again[2:], *results)

    return _by_platform(conditions.steps, partial(passes.gradients, tiling, options), loops, arrays, *results)


def _by_platform(sizes: Sizes, kernels: Callable[..., Any], loops: Callable[..., Any], *given: Any) -> Any:
    if sizes.interpret:
        return kernels(*given)
    return jax.lax.platform_dependent(*given, cuda=kernels, default=loops)


def _of_loops(tiling: CallTiling, options: Any, arrays: Any) -> tuple[Any, ...]:
    """What the loops are given in place of what the kernels are: a division into their tiles, and steps."""
    *rest, conditions = arrays
    mask, (query, key) = conditions.mask, arrays[:2]
    tiling, steps = cheapest(mask, query, key, tiling.whole, conditions.origin, None)
    return tiling, options, *rest, conditions._replace(steps=steps)
