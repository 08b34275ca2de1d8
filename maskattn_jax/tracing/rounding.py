"""What a primitive gives in the dtypes of its program, computed in float64 and rounded: nothing is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core
from jax._src.array import ArrayImpl

from maskattn_jax.tracing.evaluate import evaluate

_DTYPES = ("new_dtype", "dtype", "preferred_element_type")


def rounded(primitive: Any, args: Sequence[Any], params: Any) -> list[Any] | None:
    """The results of a primitive with the dtypes that JAX gives them; None where it is left to XLA."""
    if not all(hasattr(one, "dtype") and not jnp.issubdtype(one.dtype, jax.dtypes.extended) for one in args):
        return None
    wide = [_wide(np.asarray(one)) for one in args]
    asked = {name: np.dtype("float64") for name in _DTYPES if name in params and _floating(params[name])}
    made = evaluate(primitive.name, wide, {**params, **asked})
    if made is None:
        return None
    found, _ = primitive.abstract_eval(*map(core.typeof, args), **params)
    shaped = found if primitive.multiple_results else [found]
    return [_array(one, aval) for one, aval in zip(made, shaped, strict=True)]


def _floating(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _wide(one: Any) -> Any:
    return one.astype(np.float64) if jnp.issubdtype(one.dtype, jnp.floating) else one


def _array(value: Any, aval: Any) -> Any:
    """An array with the dtype of an abstract value, and with a weak type where that has one: both decide later ones."""
    made = jax.device_put(value.astype(aval.dtype))
    if not aval.weak_type:
        return made
    weak = core.ShapedArray(made.shape, made.dtype, weak_type=True)
    return ArrayImpl(weak, made.sharding, [made], committed=False, _skip_checks=True)
