"""Arrays on several devices: each attends for its own batch rows and heads, and nothing of them is gathered.

The compiler cannot divide a loop over slices of an axis that is sharded, so the division is made here, with
`jax.shard_map`, where it is known: over a mesh with explicit axes (`jax.sharding.AxisType.Explicit`, the default of
`jax.make_mesh`), or where the caller is inside a `shard_map` already. With automatic axes the shardings are not known
when the loops are made: put the call into a `jax.shard_map`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

Array = Any


class Origin(NamedTuple):
    """Where a device's part begins: its first batch row and its first key/value head, int32 []."""

    row: Array
    column: Array


def divided(run: Callable[..., Any], query: Array, key: Array, value: Array, sinks: Array | None, rest: Any) -> Any:
    """run(query, key, value, sinks, rest, origin) -> (output [B, L, H, Dv], lse [B, L, H]), on each device's part of
    the arrays where they are sharded over explicit axes; `rest` is whole everywhere.

    Lengths and widths are gathered where they are sharded, and heads where a device's share of the key/value heads
    would not be whole.
    """
    specs = [_spec(x) for x in (query, key, value)]
    rows = jnp.arange(query.shape[0], dtype=jnp.int32)
    columns = jnp.arange(key.shape[2], dtype=jnp.int32)
    if not any(entry is not None for spec in specs for entry in spec):
        zero = jnp.zeros((), jnp.int32)
        return run(query, key, value, sinks, rest, Origin(zero, zero))
    mesh = next(jax.typeof(x).sharding.mesh for x, spec in zip((query, key, value), specs, strict=True) if any(spec))
    batch, heads = (next((spec[axis] for spec in specs if spec[axis] is not None), None) for axis in (0, 2))
    if heads is not None and key.shape[2] % math.prod(mesh.shape[name] for name in _names(heads)):
        heads = None
    whole = PartitionSpec(batch, None, heads, None)

    def placed(x: Array, spec: PartitionSpec) -> Array:
        return jax.sharding.reshard(x, NamedSharding(mesh, spec))

    query, key, value = (placed(x, whole) for x in (query, key, value))
    sinks = None if sinks is None else placed(sinks, PartitionSpec(heads))
    rest = jax.tree.map(lambda x: placed(jnp.asarray(x), PartitionSpec(*[None] * jnp.ndim(x))), rest)
    rows, columns = placed(rows, PartitionSpec(batch)), placed(columns, PartitionSpec(heads))

    def local(query: Array, key: Array, value: Array, sinks: Any, rest: Any, rows: Array, columns: Array) -> Any:
        return run(query, key, value, sinks, rest, Origin(rows[0], columns[0]))

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            whole,
            whole,
            whole,
            PartitionSpec(heads),
            PartitionSpec(),
            PartitionSpec(batch),
            PartitionSpec(heads),
        ),
        out_specs=(whole, PartitionSpec(batch, None, heads)),
    )(query, key, value, sinks, rest, rows, columns)


def manual_axes(tree: Any) -> tuple[str, ...]:
    """The mesh axes of an enclosing `shard_map` over which some leaf varies."""
    found: set[str] = set()
    for leaf in jax.tree.leaves(tree):
        found |= set(getattr(getattr(jax.typeof(leaf), "mat", None), "varying", ()))
    return tuple(sorted(found))


def vary(tree: Any, axes: tuple[str, ...]) -> Any:
    """Every leaf as one that varies over these mesh axes, so that loops can add what varies to it."""
    if not axes:
        return tree

    def one(leaf: Any) -> Any:
        missing = tuple(name for name in axes if name not in manual_axes(leaf))
        return lax.pcast(jnp.asarray(leaf), missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree)


def _spec(x: Array) -> tuple[Any, ...]:
    """The explicit mesh axes that each of an array's four axes is sharded over; None where there are none."""
    spec = tuple(getattr(getattr(jax.typeof(x), "sharding", None), "spec", ()))
    return spec + (None,) * (4 - len(spec))


def _names(entry: Any) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,)
