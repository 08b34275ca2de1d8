"""What arrays say of their mesh while a function is traced; explicit axes: what is left to XLA, how products lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskattn.attention import Call

__all__ = [
    "alike",
    "automatic_inside",
    "axis_types",
    "dot_general",
    "explicit_mesh",
    "gathered",
    "mapped_axes",
    "names_of",
    "rows_of",
    "spec_of",
]

_ARRAYS = ("query", "key", "value", "mask", "bias", "sinks", "dropout_key")


def axis_types(*trees: object) -> set[AxisType]:
    """The types of the mesh axes, of those of more than one device, that arrays are on."""
    meshes: list[Any] = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(trees)]
    axes = [axis for mesh in meshes for axis in zip(mesh.axis_types, mesh.axis_sizes, strict=True)]
    return {kind for kind, size in axes if size > 1}


def explicit_mesh(*trees: object) -> Any:
    """The mesh of arrays some of whose mesh axes are explicit, or None."""
    for leaf in jax.tree.leaves(trees):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def mapped_axes(*trees: object) -> set[str]:
    """The explicit mesh axes that divide what an enclosing `jax.vmap` maps over; arrays inside do not tell."""
    mesh = explicit_mesh(*trees)
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return set()
    left: set[str] = set()

    def inside() -> Array:
        left.update(jax.sharding.get_abstract_mesh().explicit_axes)
        return jnp.zeros(())

    # a shard_map makes all axes manual but these
    jax.eval_shape(jax.shard_map(inside, mesh=mesh, in_specs=(), out_specs=PartitionSpec()))
    return left


def automatic_inside(
    kernel: Callable[[Call[Array]], tuple[Array, Any]],
) -> Callable[[Call[Array]], tuple[Array, Any]]:
    """A kernel that XLA divides over explicit axes too: within it they are automatic, and its output and log-sum-exp
    lie as the query does.
    """

    @functools.wraps(kernel)
    def run(call: Call[Array]) -> tuple[Array, Any]:
        leaves, structure = jax.tree.flatten([getattr(call, name) for name in _ARRAYS])
        mesh = explicit_mesh(leaves)
        if mesh is None:
            return kernel(call)
        rows = NamedSharding(mesh, PartitionSpec(*spec_of(call.query)[:3]))
        if AxisType.Manual in mesh.axis_types:  # JAX makes no axes automatic there
            whole = jax.tree.unflatten(structure, list(map(gathered, leaves)))
            results = kernel(replace(call, **dict(zip(_ARRAYS, whole, strict=True))))
            return tuple(jax.tree.map(lambda x: jax.sharding.reshard(x, rows), results))
        # what is on no mesh stays outside: it may be known now
        there = [not jax.typeof(leaf).sharding.mesh.empty for leaf in leaves]

        def inside(*arrays: Array) -> tuple[Array, Any]:
            given = iter(arrays)
            moved = [next(given) if on_mesh else leaf for leaf, on_mesh in zip(leaves, there, strict=True)]
            return kernel(replace(call, **dict(zip(_ARRAYS, jax.tree.unflatten(structure, moved), strict=True))))

        run = jax.sharding.auto_axes(inside, out_sharding=rows)
        found: tuple[Array, Any] = run(*(leaf for leaf, on_mesh in zip(leaves, there, strict=True) if on_mesh))
        return found

    return run


def gathered(x: Array) -> Array:
    """An array that is not divided over explicit axes."""
    if not any(spec_of(x)):
        return x
    mesh: Any = jax.typeof(x).sharding.mesh
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def alike(arrays: Sequence[Array], axis: int) -> list[Array]:
    """Arrays that are to be one along an axis, over explicit axes all divided as some of them are along the others."""
    mesh = explicit_mesh(arrays)
    if mesh is None:
        return list(arrays)
    axis %= arrays[0].ndim
    spec: list[object] = []
    for n, entries in enumerate(zip(*map(spec_of, arrays), strict=True)):
        used = {name for entry in spec for name in names_of(entry)}
        free = [entry for entry in entries if entry is not None and not used & set(names_of(entry))]
        spec.append(free[0] if free and n != axis else None)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return [jax.sharding.reshard(x, sharding) for x in arrays]


def rows_of(x: Array, rows: Array) -> Array:
    """x[rows]; over explicit axes divided as x is, if as many rows can be."""
    mesh = explicit_mesh(x)
    if mesh is None:
        return x[rows]
    first, *others = spec_of(x)
    parts = math.prod(mesh.shape[name] for name in names_of(first))
    spec = PartitionSpec(None if rows.shape[0] % parts else first, *others)
    return x.at[gathered(rows)].get(out_sharding=NamedSharding(mesh, spec))


def spec_of(x: Array) -> tuple[Any, ...]:
    """The explicit mesh axes that each of an array's axes is divided by; None where there are none."""
    spec = tuple(getattr(getattr(jax.typeof(x), "sharding", None), "spec", ()))
    return spec + (None,) * (x.ndim - len(spec))


def dot_general(
    x: Array, kernel: Array, dimensions: Any, *arguments: Any, out_sharding: Any = None, **options: Any
) -> Array:
    """`lax.dot_general` of a layer's input and kernel, without batch axes; over explicit axes the result lies as the
    axes of the two lie that it has, those of the input first, where nothing else is said.

    Arguments as in `lax.dot_general`.
    """
    (ins, of_kernel), _ = dimensions
    mesh = explicit_mesh(x, kernel) if out_sharding is None else None
    if mesh is not None:
        rows = [entry for axis, entry in enumerate(spec_of(x)) if axis not in ins]
        columns = [entry for axis, entry in enumerate(spec_of(kernel)) if axis not in of_kernel]
        used = {name for entry in rows for name in names_of(entry)}
        columns = [None if used & set(names_of(entry)) else entry for entry in columns]
        out_sharding = NamedSharding(mesh, PartitionSpec(*rows, *columns))
    if out_sharding is not None:
        options["out_sharding"] = out_sharding
    return lax.dot_general(x, kernel, dimensions, *arguments, **options)


def names_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of an entry of a PartitionSpec."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)
