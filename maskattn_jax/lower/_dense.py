"""Whole masks and biases as JAX arrays."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Float

from maskattn import lowering
from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn_jax import tables
from maskattn_jax._scope import own_modes
from maskattn_jax.lower._binding import arange, bind, readable
from maskattn_jax.types import Array, DType

_LOWERING = lowering.Lowering(readable, bind, arange, lambda array: array.astype(jnp.float32), tables.look_up)


@own_modes
def allowed(mask: Mask | None, batch: int, heads: int, q_len: int, kv_len: int) -> Bool[Array, "#B #H #L #S"] | None:
    """Where the mask allows: bool, rank 4, broadcastable to [batch, heads, q_len, kv_len]. True = may attend.

    Axes that the mask does not read have size 1. None where everything is allowed.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    return lowering.allowed(mask, (batch, heads, q_len, kv_len), _LOWERING)


@own_modes
def bias(bias: Bias | None, batch: int, heads: int, q_len: int, kv_len: int) -> Float[Array, "#B #H #L #S"] | None:
    """The bias as a float array, rank 4, broadcastable to [batch, heads, q_len, kv_len].

    Axes that the bias does not read have size 1. A DenseBias is only reshaped: gradients flow to its array, and
    to the table of a TableBias, summed in one order for every framework.

    Raises:
        ValueError: the sizes conflict with the bias's data.
    """
    return lowering.bias(bias, (batch, heads, q_len, kv_len), _LOWERING)


@own_modes
def to_dense(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None
) -> Bool[Array, "B H L S"]:
    """The mask as a bool array [batch, heads, q_len, kv_len]. True = may attend. Sizes not given come from the data.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    keep, sizes = lowering.dense(mask, q_len, kv_len, batch, heads, _LOWERING)
    return jnp.broadcast_to(keep, sizes)


@own_modes
def to_additive(
    mask: Mask, dtype: DType, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None
) -> Float[Array, "B H L S"]:
    """0 where the mask allows, the dtype's minimum where it forbids: [batch, heads, q_len, kv_len].

    Raises:
        TypeError: the dtype is not a float. ValueError: the sizes conflict with the mask's data.
    """
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"to_additive: dtype must be a float dtype, got {dtype}")
    keep = to_dense(mask, q_len, kv_len, batch, heads)
    return jnp.where(keep, jnp.zeros((), dtype), jnp.asarray(jnp.finfo(dtype).min, dtype))
