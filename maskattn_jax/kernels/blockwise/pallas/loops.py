"""The walk of a kernel over the tiles of one row of its lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array, lax

from maskattn_jax.kernels.blockwise.pallas.sides import Ref

C = TypeVar("C")


class Row(NamedTuple):
    """One row of `Lists`, read: int32 [] each."""

    tile: Array
    mixed: Array
    full: Array
    first: Array


def read_row(rows_ref: Ref, *at: Array | int) -> Row:
    """The row at these indices."""
    return Row(*(rows_ref[(*at, n)] for n in range(4)))


def visit(
    row: Row,
    entry: Callable[[Array], Array],
    ranges: bool,
    careful: bool,
    step: Callable[[Array, C, bool], C],
    carry: C,
) -> C:
    """`step(tile, carry, masked)` over the mixed tiles of a row, then its full ones; `entry(n)` is the nth listed.

    `careful`: all in one loop, which asks the mask for each: it is rarely needed, and a loop less to compile.
    """

    def any_of(n: Array) -> Array:
        if not ranges:
            return entry(n)
        # what is read where it is not meant lies in the list
        listed = entry(jnp.minimum(n, jnp.maximum(row.mixed - 1, 0)))
        return jnp.where(n < row.mixed, listed, row.first + n - row.mixed)

    if careful:
        return lax.fori_loop(0, row.mixed + row.full, lambda n, carry: step(any_of(n), carry, True), carry)
    carry = lax.fori_loop(0, row.mixed, lambda n, carry: step(entry(n), carry, True), carry)
    if ranges:
        return lax.fori_loop(row.first, row.first + row.full, lambda n, carry: step(n, carry, False), carry)
    return lax.fori_loop(row.mixed, row.mixed + row.full, lambda n, carry: step(entry(n), carry, False), carry)


def settled(walk: Callable[[bool], C], results: Callable[[C], list[Array]], may_leak: bool) -> C:
    """`walk(False)`, or `walk(True)`, which clears what no query attends to, where the first is not finite.

    0 times what is not finite is NaN, so a key that nothing attends to can reach a sum only as such: a look at each sum
    tells, and costs next to nothing, where clearing every tile that is read would cost a tenth.
    """
    first = walk(False)
    if not may_leak:
        return first
    bad = [jnp.sum(x * 0.0) != 0.0 for x in results(first)]
    again = bad[0]
    for other in bad[1:]:
        again = again | other
    return lax.cond(again, lambda: walk(True), lambda: first)
