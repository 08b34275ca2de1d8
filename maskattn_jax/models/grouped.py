"""Products of rows with the matrix of their group, which read no matrix of a group without rows.

`jax.lax.ragged_dot` multiplies all rows with all matrices on a CPU (jax 0.10): 64 times the work for 64 experts. Here a
loop takes some rows of one group at a time; how many times it runs depends on the data, so its derivative is its own.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from maskattn_jax.types import Array

__all__ = ["grouped"]

#: (where a block's rows begin, where those of its group end, the group), each [blocks]; and how many blocks there are.
_Blocks = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped(x: Array, weights: Array, counts: Array, turned: bool) -> Array:
    """Rows of x, sorted by group, each times the matrix of its group.

    Args:
        x: float [N, in].
        weights: [groups, in, out], or [groups, out, in] where `turned`; of the dtype of x.
        counts: int [groups], how many rows are of each; their sum is N.
        turned: which of the two.

    Returns:
        [N, out], of the dtype of x. It has no derivatives in forward mode.
    """
    size = _size(x, counts)
    starts, ends, groups, total = _blocks(counts, size, len(x))
    padded = jnp.pad(x, ((0, size), (0, 0)))
    width = weights.shape[1] if turned else weights.shape[2]

    def step(n: Array, out: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(padded, starts[n], size)
        matrix = lax.dynamic_index_in_dim(weights, groups[n], keepdims=False)
        made = lax.dot_general(rows, matrix, (((1,), (1 if turned else 0,)), ((), ())))
        held = lax.dynamic_slice_in_dim(out, starts[n], size)
        made = jnp.where(_inside(starts[n], ends[n], size), made, held)
        return lax.dynamic_update_slice_in_dim(out, made, starts[n], 0)

    return lax.fori_loop(0, total, step, jnp.zeros((len(padded), width), x.dtype))[: len(x)]


def _forward(x: Array, weights: Array, counts: Array, turned: bool) -> tuple[Array, tuple[Array, Array, Array]]:
    return grouped(x, weights, counts, turned), (x, weights, counts)


def _backward(turned: bool, held: tuple[Array, Array, Array], given: Array) -> tuple[Array, Array, None]:
    x, weights, counts = held
    size = _size(x, counts)
    starts, ends, groups, total = _blocks(counts, size, len(x))
    left, right = (given, x) if turned else (x, given)
    left, right = (jnp.pad(each, ((0, size), (0, 0))) for each in (left, right))
    wide = jnp.promote_types(weights.dtype, jnp.float32)

    def step(n: Array, sums: Array) -> Array:
        one, other = (lax.dynamic_slice_in_dim(each, starts[n], size).astype(wide) for each in (left, right))
        one = jnp.where(_inside(starts[n], ends[n], size), one, 0)
        return sums.at[groups[n]].add(one.T @ other)

    of_weights = lax.fori_loop(0, total, step, jnp.zeros(weights.shape, wide)).astype(weights.dtype)
    return grouped(given, weights, counts, not turned), of_weights, None


grouped.defvjp(_forward, _backward)


def _size(x: Array, counts: Array) -> int:
    """Rows of a block: about as many as a group has, a power of two, at most 128."""
    return 1 << min(max((len(x) // len(counts)).bit_length() - 1, 0), 7)


def _blocks(counts: Array, size: int, rows: int) -> _Blocks:
    each = -(-counts // size)
    until, ends = jnp.cumsum(each), jnp.cumsum(counts)
    numbers = jnp.arange(rows // size + min(len(counts), rows))
    groups = jnp.minimum(jnp.searchsorted(until, numbers, side="right"), len(counts) - 1)
    starts = (ends - counts)[groups] + (numbers - (until - each)[groups]) * size
    return starts, ends[groups], groups, until[-1]


def _inside(start: Array, end: Array, size: int) -> Array:
    return (start + jnp.arange(size) < end)[:, None]
