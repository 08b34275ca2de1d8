"""Inside a `jax.shard_map`: over which mesh axes an array varies, and how it comes to vary over more."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["manual_axes", "vary"]

T = TypeVar("T")


def manual_axes(tree: object) -> tuple[str, ...]:
    """The mesh axes of an enclosing `shard_map` over which some leaf varies."""
    axes: set[str] = set()
    for leaf in jax.tree.leaves(tree):
        axes |= set(getattr(getattr(jax.typeof(leaf), "mat", None), "varying", ()))
    return tuple(sorted(axes))


def vary(tree: T, axes: tuple[str, ...]) -> T:
    """Every leaf as one that varies over these mesh axes, so that loops can add what varies to it."""
    if not axes:
        return tree

    def one(leaf: Array) -> Array:
        missing = tuple(name for name in axes if name not in manual_axes(leaf))
        return lax.pcast(jnp.asarray(leaf), missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree)
