"""Attention over disjoint sets of keys, put together: the parts of a ring, of a cache, of a long sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from maskattn.attention import check_merge
from maskattn_jax._scope import own_modes
from maskattn_jax.types import Array, Operand

__all__ = ["merge"]


@own_modes
def merge(
    out: Float[Operand, "B L H Dv"],
    lse: Float[Operand, "B L H"],
    out2: Float[Operand, "B L H Dv"],
    lse2: Float[Operand, "B L H"],
) -> tuple[Float[Array, "B L H Dv"], Float[Array, "B L H"]]:
    """The output and log-sum-exp over the keys of two calls of `attention`, whose keys have none in common.

    A part that attends to nothing (log-sum-exp -inf) counts for nothing, whatever its output; where both do, the result
    is +0 and -inf. More parts are merged one after the other. Give `sinks` to one part only, and positions to each by
    `mask.at(k_offset=...)`:

    >>> import jax
    >>> from maskattn import masks
    >>> from maskattn_jax import attention, merge
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    >>> mask = masks.Causal()
    >>> first = attention(query, key[:, :4], value[:, :4], mask, return_lse=True)
    >>> last = attention(query, key[:, 4:], value[:, 4:], mask.at(k_offset=4), return_lse=True)
    >>> bool(jax.numpy.allclose(merge(*first, *last)[0], attention(query, key, value, mask), atol=1e-6))
    True

    Args:
        out, out2: [B, L, H, Dv], of one dtype.
        lse, lse2: [B, L, H], float32 or float64, as `attention` returns them.

    Returns:
        (out, lse), in the dtypes of the arguments: computed in that of `lse`, and rounded once. Differentiable.

    Raises:
        TypeError, ValueError: the shapes or dtypes are others.
    """
    given = {"out": out, "lse": lse, "out2": out2, "lse2": lse2}
    check_merge(given, (jax.Array, np.ndarray), "a JAX or NumPy array")
    out, lse, out2, lse2 = map(jnp.asarray, given.values())
    merged = _weighted(out, _share(lse2, lse)) + _weighted(out2, _share(lse, lse2))
    empty = (lse == -jnp.inf) & (lse2 == -jnp.inf)
    total = jnp.where(empty, -jnp.inf, jnp.logaddexp(jnp.where(empty, 0, lse), jnp.where(empty, 0, lse2)))
    return merged.astype(out.dtype), total


def _share(lse: Array, other_lse: Array) -> Array:
    """The weight of the other result, exp(other_lse) / (exp(lse) + exp(other_lse)); 0 where it attends to nothing.

    It depends on the difference alone: with one exponential for each, what a large log-sum-exp has lost by rounding
    would scale the output.
    """
    return jax.nn.sigmoid(jnp.where(other_lse == -jnp.inf, -jnp.inf, other_lse - lse))


def _weighted(out: Array, share: Array) -> Array:
    """A result times its weight, a weight of 0 giving 0 whatever it meets."""
    share = share[..., None]
    return jnp.where(share == 0, 0, out.astype(share.dtype)) * share
