"""Binding: the data of masks and biases as JAX arrays, checked against sizes; and both as pytrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from maskattn import lowering
from maskattn._fields import Spec, dtype_name, on_subclass, peek
from maskattn._lookup import wide
from maskattn._pairs import Pairwise
from maskattn.biases import DenseBias
from maskattn.masks import At, Dense
from maskattn.masks.positions import Positioned, Stored
from maskattn_jax.types import Array, Given

_MOST = 1 << 30

Node = TypeVar("Node", bound=Spec)


def register() -> None:
    """Make every mask and bias a pytree, those defined later included; its leaves are its data."""
    on_subclass(_register)


def bind(node: Node) -> Node:
    """`node`, a mask or bias, with its data as JAX arrays (int64 becomes int32 unless x64 is on).

    Raises:
        ValueError: an integer does not fit in int32 while x64 is off, or could leave it when added to a position.
    """
    _check_integers(node)
    return node.map_data(_as_array)


def opaque(node: Node | None, *operands: object) -> Node | None:
    """`node`, bound, with arrays of L x S entries that XLA cannot see through, where `operands` are traced: what
    is computed from a constant of the traced function it would fold otherwise, which takes it minutes.
    """
    if node is None or not any(isinstance(x, jax.core.Tracer) for x in operands):
        return node
    leaves, structure = node.flatten()
    if isinstance(node, (Dense, DenseBias)):
        leaves = [jax.lax.optimization_barrier(jnp.asarray(leaf)) for leaf in leaves]
    else:
        leaves = [opaque(leaf, *operands) if isinstance(leaf, Spec) else leaf for leaf in leaves]
    return type(node).unflatten(structure, leaves)


def check(node: Pairwise, batch: int, heads: int, q_len: int, kv_len: int) -> None:
    """Compare the sizes batch, heads, q_len and kv_len with the data of `node`, a mask or bias.

    Raises:
        ValueError: they conflict; every conflict is named.
    """
    lowering.check(node, (batch, heads, q_len, kv_len), readable)


def arange(node: Spec) -> Callable[[int], Array]:
    """Makes the indices 0, 1, ..., int32."""
    return lambda size: jnp.arange(size, dtype=jnp.int32)


def readable(array: Given) -> Given:
    """The array in NumPy where reading it waits for no device; else as it is, and only its shape is checked."""
    if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
        return array
    on_cpu = array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())
    numbers = peek(array) if on_cpu and array.ndim == 1 else None
    return array if numbers is None else numbers


def _check_integers(node: Spec) -> None:
    """Positions are int32 here: an int that is added to one must leave it room."""
    _, (_, static) = node.flatten()
    given = [(name, value) for name, value in static if name not in node._kinds or not node._kinds[name].consumed]
    if isinstance(node, (At, Positioned, Stored)) and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        # reading may wait for a device: of positions only those are read that int32 may not hold
        arrays = [(name, getattr(node, name)) for name in node.data_fields()]
        read = [(name, peek(x)) for name, x in arrays if isinstance(node, At) or dtype_name(x) == "uint32"]
        given += [(name, array) for name, array in read if array is not None]
    for name, value in given:
        if any(abs(number) > _MOST for number in _integers(value)):
            raise ValueError(
                f"{type(node).__name__}: {name} must lie within 2**30: positions are int32 in JAX, got {value}"
            )
    for child in node.children():
        _check_integers(child)


def _integers(value: object) -> Iterator[int]:
    """The ints in a static field, or the extremes of an array of ints."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _integers(entry)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        yield from (int(value.min()), int(value.max()))


def _as_array(array: Given) -> Array:
    if isinstance(array, np.ndarray) and array.dtype == np.int64 and array.size and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"integers must fit in int32 while x64 is off, got {array.min()} to {array.max()}")
    if hasattr(array, "detach"):
        got = f"{type(array).__name__} of dtype {dtype_name(array)}"
        raise TypeError(f"data must be of NumPy or JAX here, got {got}")
    if not isinstance(array, np.ndarray):
        return wide(jnp.asarray(array))
    with jax.ensure_compile_time_eval():  # NumPy data stay readable while a function is traced: plans can be made
        return wide(jnp.asarray(array))


def _register(cls: type[Spec]) -> None:
    def flatten_with_keys(node: Spec) -> tuple[list[tuple[GetAttrKey, Any]], Any]:
        leaves, structure = node.flatten()
        keys = [GetAttrKey(name if place is None else f"{name}[{place}]") for name, place in structure[0]]
        return list(zip(keys, leaves, strict=True)), structure

    jax.tree_util.register_pytree_with_keys(
        cls, flatten_with_keys, lambda structure, leaves: cls.unflatten(structure, leaves), Spec.flatten
    )
