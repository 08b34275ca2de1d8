"""The modes of JAX that the library's own arithmetic runs in, whatever its caller has chosen; and what he may bring."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["own_modes", "plain"]

#: (the option, what the library's formulas are written for, the context that sets it)
_MODES = (
    # formulas of masks mix bools, small integers and ranks, in every framework alike
    ("jax_numpy_dtype_promotion", "standard", jax.numpy_dtype_promotion),
    ("jax_numpy_rank_promotion", "allow", jax.numpy_rank_promotion),
    # -inf is a value here: the logit of a forbidden pair, the log-sum-exp of an empty row
    ("jax_debug_infs", False, jax.debug_infs),
)


def own_modes(function: Callable[P, R]) -> Callable[P, R]:
    """The function with promotion of dtypes and ranks as its formulas need it, and -inf not taken for a fault.

    For every function that JAX or a caller calls: those of the interface, and the rules of a `jax.custom_vjp`, which
    are traced when its caller's modes hold again.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        config = jax.config
        others = [(mode, context) for name, mode, context in _MODES if getattr(config, name) != mode]
        if not others:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for mode, context in others:
                stack.enter_context(context(mode))
            return function(*args, **kwargs)

    return run


def plain(x: Any) -> Any:
    """What stands for an array of JAX, as an `nnx.Param` does, as that array; anything else as it is."""
    return jnp.asarray(x) if hasattr(x, "__jax_array__") else x
