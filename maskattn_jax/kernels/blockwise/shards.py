"""Arrays on several devices: each attends for its own batch rows, heads and queries, which are not gathered.

The compiler cannot divide a loop over slices of an axis that is sharded. Over a mesh with explicit axes
(`jax.sharding.AxisType.Explicit`, the default of `jax.make_mesh`) the division is made here, with `jax.shard_map`. Keys
and values are gathered along their length, if they are sharded along it; of mask and bias a device has the data of its
own rows, heads and queries, where that is enough (`own.py`), else all of them. Over automatic axes, where shardings are
not known when the loops are made, `automatic.py` divides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maskattn_jax._mesh import gathered, names_of, spec_of
from maskattn_jax._partition import Axes, Origin

Entry: TypeAlias = str | tuple[str, ...] | None  # of a PartitionSpec
Entries: TypeAlias = tuple[Entry, ...]  # of batch, length, heads and width
Pair: TypeAlias = tuple[Array, Array]


def divided(
    run: Callable[..., Pair],
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None,
    rest: object,
    axes: Callable[[], Sequence[Axes]],
) -> Pair:
    """run(query, key, value, sinks, rest, origin) -> (output [B, L, H, Dv], lse [B, L, H]), on each device's part of
    the arrays where they are sharded over explicit axes; `axes()` names those of each array of `rest`.

    Queries stay where they are, and so does what they give; keys and values are gathered along their length. Where
    several devices share a key/value head, each has it. Widths are gathered where they are sharded, and query heads
    where those of a device would be of parts of several key/value heads.
    """
    specs = [spec_of(x) for x in (query, key, value)]
    if not any(entry is not None for spec in specs for entry in spec):
        zero = jnp.zeros((), jnp.int32)
        return run(query, key, value, *jax.tree.map(gathered, (sinks, rest)), Origin(zero, zero, zero))
    mesh = next(jax.typeof(x).sharding.mesh for x, spec in zip((query, key, value), specs, strict=True) if any(spec))

    def placed(x: Array, *spec: object) -> Array:
        return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))

    if AxisType.Manual in mesh.axis_types:  # JAX has no gradients of a shard_map in one over other axes
        zero, rows = jnp.zeros((), jnp.int32), specs[0][:3]
        whole = [jax.tree.map(gathered, tree) for tree in (query, key, value, sinks, rest)]
        output, lse = run(*whole, Origin(zero, zero, zero))
        return placed(output, *rows), placed(lse, *rows)
    batch, heads, length, kv_length = _division(specs, mesh, key.shape[2])

    def local(query: Array, key: Array, value: Array, sinks: object, rest: list[Array], *starts: Array) -> Pair:
        if kv_length is not None:
            key, value = (lax.all_gather(x, kv_length, axis=1, tiled=True) for x in (key, value))
        origin = Origin(*(x[0] for x in starts))
        if shared:
            kv_head = lax.div(origin.head, jnp.int32(group))
            key, value = (lax.dynamic_slice_in_dim(x, kv_head, 1, axis=2) for x in (key, value))
        return run(query, key, value, sinks, jax.tree.unflatten(structure, rest), origin)

    group = query.shape[2] // max(1, key.shape[2])
    shared = key.shape[2] % _size(mesh, heads) != 0
    queries, keys = (batch, length, heads, None), (batch, kv_length, None if shared else heads, None)
    query, key, value = placed(query, *queries), placed(key, *keys), placed(value, *keys)
    sinks = None if sinks is None else placed(sinks, heads)
    leaves, structure = jax.tree.flatten(rest)
    divided_by = {"b": batch, "h": heads, "l": length}
    lie = [[divided_by.get(name) for name in names] for names in axes()]
    own = [placed(jnp.asarray(x), *entries) for x, entries in zip(leaves, lie, strict=True)]
    along = ((query.shape[0], batch), (query.shape[2], heads), (query.shape[1], length))
    starts = [placed(jnp.arange(size, dtype=jnp.int32), names) for size, names in along]
    in_specs = [PartitionSpec(*queries), *[PartitionSpec(*keys)] * 2, PartitionSpec(heads)]
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            *in_specs,
            [PartitionSpec(*entries) for entries in lie],
            *(PartitionSpec(names) for _, names in along),
        ),
        out_specs=(PartitionSpec(*queries), PartitionSpec(*queries[:3])),
    )(query, key, value, sinks, own, *starts)


def _division(specs: list[Entries], mesh: Mesh, kv_heads: int) -> Entries:
    """The mesh axes that divide batch, heads, queries and, until they are gathered, keys; none divides two of them."""
    query, key, value = specs
    used: set[str] = set()

    def first(*entries: Entry) -> Entry:
        for entry in entries:
            if entry is not None and not used & set(names_of(entry)):
                used.update(names_of(entry))
                return entry
        return None

    def in_whole_heads(*entries: Entry) -> list[Entry]:
        sizes = [_size(mesh, entry) for entry in entries]
        return [entry for entry, size in zip(entries, sizes, strict=True) if not kv_heads % size or not size % kv_heads]

    # queries stay where they are, before anything else
    batch, heads, length = first(query[0]), first(*in_whole_heads(query[2])), first(query[1])
    batch = first(key[0], value[0]) if batch is None else batch
    heads = first(*in_whole_heads(key[2], value[2])) if heads is None else heads
    # along an axis that does not divide the queries every device needs all keys before it starts
    kv_length = key[1] if key[1] is not None and set(names_of(key[1])) <= set(names_of(length)) else None
    return batch, heads, length, kv_length


def _size(mesh: Mesh, entry: Entry) -> int:
    """Into how many parts an entry of a PartitionSpec divides."""
    return math.prod(mesh.shape[name] for name in names_of(entry))
