"""Whole models in the exact arithmetic, on JAX's arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from flax.nnx import Module
from jax.extend.core import get_opaque_trace_state

from maskattn.models import exact, leaves
from maskattn_jax import dropout
from maskattn_jax.kernels import exact as kernel
from maskattn_jax.kernels.exact.rules import fork
from maskattn_jax.models.ops import OPS
from maskattn_jax.types import Array

__all__ = ["Exact", "added_to"]

_NAMES = ("kernel", "embedding", "scale")


class Exact(exact.Exact[Array]):
    """See `maskattn.models.exact.Exact`."""

    def __init__(self) -> None:
        super().__init__(OPS, kernel.LAYER)

    def numbers(self, leaf: leaves.Leaf, module: Any) -> tuple[Array | None, Array | None]:
        """Weight and bias of a layer as it holds them."""
        held = next((getattr(module, name) for name in _NAMES if hasattr(module, name)), None)
        bias = getattr(module, "bias", None)
        return None if held is None else self.array(held), None if bias is None else self.array(bias)

    def fork(self, x: Array) -> tuple[Array, Array]:
        """x twice; its gradient is that of both added, rounded once."""
        return fork(x)

    def scope(self) -> object:
        """What is being traced."""
        return get_opaque_trace_state(convention="flax")

    def is_followed(self, x: Array) -> bool:
        """Whether gradients of x may be asked for: of tracers."""
        return isinstance(x, jax.core.Tracer)

    def drop(self, x: Array, rate: float, key: Array) -> Array:
        """Dropout of each number by itself."""
        return dropout.drop(self.once(x), rate, key, kernel.drop)


def added_to(
    model: Module, plain: tuple[type[Module], ...], groups: tuple[type[Module], ...]
) -> Iterator[tuple[str, str]]:
    """(path, what it is) of layers of a model that are more than their numbers.

    Args:
        plain: what layers are. groups: what holds them, which is called.
    """
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, groups) and type(module) not in plain:
            yield ".".join(map(str, path)), type(module).__name__
