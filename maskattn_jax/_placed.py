"""Where loaded arrays go: to where the ones are that they replace."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskattn.typing import NumPyArray


def placed(array: NumPyArray | Array, held: Array) -> Array:
    """A copy of the array where `held` is, of any shape and dtype.

    It is bound to that place only where `held` is: for an array that is bound, `jax.jit` compiles again what it had
    compiled for one that is not. A copy, since on the CPU JAX may otherwise keep using the caller's memory.
    """
    copy = np.array(array, order="C", copy=True)
    if not isinstance(held, jax.Array) or isinstance(held, jax.core.Tracer) or held.committed:
        return jax.device_put(copy, held.sharding)
    with jax.default_device(next(iter(held.devices()))):
        return jnp.asarray(copy)
