"""What is gathered of a call on the mesh that its arrays are on, in words: the end of what `explain` says."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, NamedSharding

from maskattn.attention import Call
from maskattn_jax._mesh import axis_types, names_of, spec_of

__all__ = ["gathered"]

Entries = tuple[Any, ...]  # of a PartitionSpec, one for each axis
_EXACT = "queries along their length, where they are divided along it: its sums have one order"
_UNKNOWN = (
    "keys and values along their length, where they or the queries are divided along it, and heads, where a device "
    "would have parts of several key/value heads"
)


def gathered(kernel: str, call: Call[Array]) -> str:
    """What the kernel gathers over the devices of a mesh, or what it may where that is not known; "" without a mesh."""
    operands = call.query, call.key, call.value
    types = axis_types(operands)
    if not types & {AxisType.Auto, AxisType.Explicit}:
        return ""
    if AxisType.Manual in types:
        return "over the axes that this jax.shard_map leaves to XLA, query, key and value may be gathered"
    lie = [_entries(x) for x in operands]
    if None in lie:
        also = f"; {_EXACT}" if kernel == "exact" else ""
        return f"XLA divides it along batch, heads and queries as the arrays lie; gathered are {_UNKNOWN}{also}"
    found = _found(kernel, call, *lie)  # type: ignore[arg-type]
    return f"on this mesh is gathered: {'; '.join(found) if found else 'nothing'}"


def _found(kernel: str, call: Call[Array], query: Entries, key: Entries, value: Entries) -> list[str]:
    found = []
    if along := _over(key[1], value[1]):
        found.append(f"keys and values along their length, over {along}")
    if kernel == "exact" and query[1] is not None:
        found.append(f"queries along their length, over {_over(query[1])}: its sums have one order")
    mesh: Any = jax.typeof(call.query).sharding.mesh
    parts, kv_heads = math.prod(mesh.shape[name] for name in names_of(query[2])), call.key.shape[2]
    if kv_heads % parts and parts % kv_heads:
        found.append(f"heads, over {_over(query[2])}: {parts} devices do not divide {kv_heads} key/value heads")
    if along := _over(query[3], key[3], value[3]):
        found.append(f"widths, over {along}")
    return found


def _over(*entries: Any) -> str:
    """The mesh axes of entries, as they are listed."""
    return ", ".join(dict.fromkeys(name for entry in entries for name in names_of(entry)))


def _entries(x: Array) -> Entries | None:
    """The mesh axes that each of an array's axes is divided by; None where that is not known now."""
    if AxisType.Auto not in axis_types(x):
        return spec_of(x)
    if isinstance(x, jax.core.Tracer) or not isinstance(x.sharding, NamedSharding):
        return None
    spec = tuple(x.sharding.spec)
    return spec + (None,) * (x.ndim - len(spec))
