"""Masks and biases as JAX arrays, and as pytrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from maskattn._fields import Array, Spec, dtype_name, on_subclass, peek
from maskattn._pairs import AXES, grid
from maskattn.biases import Additive, Bias, DenseBias, TableBias
from maskattn.masks import At, Full, Mask
from maskattn.masks._core import evaluate, require_mask
from maskattn_jax.lower.backends import to_dot_product_attention, to_splash_mask

__all__ = [
    "allowed",
    "bias",
    "bind",
    "check",
    "register",
    "to_additive",
    "to_dense",
    "to_dot_product_attention",
    "to_splash_mask",
]

_REGISTERED: set[type[Spec]] = set()
_MOST = 1 << 30


def register() -> None:
    """Make every mask and bias a pytree, those defined later included; its leaves are its data."""
    on_subclass(_register)


def bind(node: Any) -> Any:
    """The mask or bias with its data as JAX arrays (int64 becomes int32 unless x64 is on).

    Raises:
        ValueError: an integer does not fit in int32 while x64 is off, or could leave it when added to a position.
    """
    _check_integers(node)
    return node.map_data(_as_array)


def allowed(mask: Mask | None, batch: int, heads: int, q_len: int, kv_len: int) -> Array | None:
    """Where the mask allows: bool, rank 4, broadcastable to [batch, heads, q_len, kv_len]. True = may attend.

    Axes that the mask does not read have size 1. None where everything is allowed.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    if mask is None:
        return None
    check(mask, batch, heads, q_len, kv_len)
    if isinstance(mask, Full):
        return None
    mask = bind(mask)
    return evaluate(mask, (batch, heads, q_len, kv_len), _arange())


def bias(bias: Bias | None, batch: int, heads: int, q_len: int, kv_len: int) -> Array | None:
    """The bias as a float array, rank 4, broadcastable to [batch, heads, q_len, kv_len].

    Axes that the bias does not read have size 1. A DenseBias is only reshaped: gradients flow to its array, and
    to the table of a TableBias, summed in one order for every framework.

    Raises:
        ValueError: the sizes conflict with the bias's data.
    """
    if bias is None:
        return None
    check(bias, batch, heads, q_len, kv_len)
    bias = bind(bias)
    if isinstance(bias, DenseBias):
        return bias.array.reshape(bias.shape)
    shape = (batch, heads, q_len, kv_len)
    if isinstance(bias, Additive):
        forbidden = evaluate(bias.mask, shape, _arange()) ^ True
        return forbidden.astype(jnp.float32) * jnp.float32(bias.value)
    b, h, q, k = grid(bias.depends, shape, _arange())
    if isinstance(bias, TableBias):
        from maskattn_jax import tables

        return tables.look_up(bias.table, bias.rows(b, q, k))
    return bias.values(b, h, q, k)


def to_dense(mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None) -> Array:
    """The mask as a bool array [batch, heads, q_len, kv_len]. True = may attend. Sizes not given come from the data.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    require_mask("to_dense", mask)
    sizes = mask.map_data(_readable).settle(q_len, kv_len, batch, heads)
    shape = tuple(sizes[axis] for axis in AXES)
    mask = bind(mask)
    return jnp.broadcast_to(evaluate(mask, shape, _arange()), shape)


def to_additive(
    mask: Mask, dtype: Any, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None
) -> Array:
    """0 where the mask allows, the dtype's minimum where it forbids: [batch, heads, q_len, kv_len].

    Raises:
        TypeError: the dtype is not a float. ValueError: the sizes conflict with the mask's data.
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"to_additive: dtype must be a float dtype, got {dtype}")
    keep = to_dense(mask, q_len, kv_len, batch, heads)
    return jnp.where(keep, jnp.zeros((), dtype), jnp.asarray(jnp.finfo(dtype).min, dtype))


def check(node: Any, batch: int, heads: int, q_len: int, kv_len: int) -> None:
    """Raise a ValueError naming every conflict between these sizes and the data of a mask or bias."""
    sizes = dict(zip(AXES, (batch, heads, q_len, kv_len), strict=True))
    faults = node.map_data(_readable).conflicts(sizes)
    if faults:
        raise ValueError("; ".join(faults))


def _readable(array: Array) -> Array:
    """The array in NumPy where reading it waits for no device; else as it is, and only its shape is checked."""
    if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
        return array
    on_cpu = array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())
    found = peek(array) if on_cpu and array.ndim == 1 else None
    return array if found is None else found


def _check_integers(node: Any) -> None:
    """Positions are int32 here: an int that is added to one must leave it room."""
    _, (_, _, static) = node.flatten()
    # a seed is used up when the mask is made
    given = [(name, value) for name, value in static if name != "seed"]
    if isinstance(node, At) and not jax.config.jax_enable_x64:
        given += [(name, array) for name in node.data_fields() if (array := peek(getattr(node, name))) is not None]
    for name, value in given:
        if any(abs(number) > _MOST for number in _integers(value)):
            raise ValueError(
                f"{type(node).__name__}: {name} must lie within 2**30: positions are int32 in JAX, got {value}"
            )
    for child in node.children():
        _check_integers(child)


def _integers(value: Any) -> Iterator[int]:
    """The ints in a static field, or the extremes of an array of ints."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _integers(entry)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        yield from (int(value.min()), int(value.max()))


def _as_array(array: Array) -> Array:
    if isinstance(array, np.ndarray) and array.dtype == np.int64 and array.size and not jax.config.jax_enable_x64:
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"integers must fit in int32 while x64 is off, got {array.min()} to {array.max()}")
    if hasattr(array, "detach"):
        found = f"{type(array).__name__} of dtype {dtype_name(array)}"
        raise TypeError(f"data must be of NumPy or JAX here, got {found}")
    if not isinstance(array, np.ndarray):
        return jnp.asarray(array)
    with jax.ensure_compile_time_eval():  # NumPy data stay readable while a function is traced: plans can be made
        return jnp.asarray(array)


def _arange() -> Callable[[int], Array]:
    return lambda size: jnp.arange(size, dtype=jnp.int32)


def _register(cls: type[Spec]) -> None:
    if cls in _REGISTERED:
        return
    _REGISTERED.add(cls)

    def flatten_with_keys(node: Any) -> tuple[list[Any], Any]:
        leaves, structure = node.flatten()
        names, counts, _ = structure
        keys = [GetAttrKey(name) for name in names]
        for name, count in counts:
            keys += [GetAttrKey(name if count is None else f"{name}[{i}]") for i in range(count or 1)]
        return list(zip(keys, leaves, strict=True)), structure

    jax.tree_util.register_pytree_with_keys(
        cls, flatten_with_keys, lambda structure, leaves: cls.unflatten(structure, leaves), Spec.flatten
    )
